"""What of a run's events makes its batches others than its config alone would: rollbacks, and changes that were declared.

The event log is never cut, so it tells what a run did in the order in which it did it. A rollback takes the run from the step
of an alarm back to a checkpoint, and past the batches since: the step after the checkpoint is trained on the batch that would
have come after the alarm's. With another batch size the order goes on at the example that it had come to, or the next one that
begins a batch; other shards begin theirs. So the batch of a step is a pure function of config, data and these events.

A checkpoint states in `data_cursor` how many batches of the order its run had come past. Rollbacks only move that forward, for
every step after the one that they lead to: the figure tells whether a checkpoint is of the run as it stands, or of steps that
were taken back.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxlm.contract import Finding, Manifest


class Rollback(NamedTuple):
    """step: of the alarm, from 1. to: steps done at the checkpoint that the run went back to, 0 for its beginning. past: how
    many batches of the order were passed over. undone: the file with the telemetry of these steps, seen from the run; sha256:
    of that file. removed: fingerprints of the checkpoints that were removed, by step."""

    step: int
    to: int
    past: int
    undone: str
    sha256: str
    removed: Mapping[str, str]

    def undoes(self, step: int) -> bool:
        """Whether step number `step` is one of those that it took back."""
        return self.to < step <= self.step


@dataclass(frozen=True)
class History:
    """changes: the events that move the order of the batches, in their order. starts, offsets: after so many steps, ascending,
    the batches come by so much further on."""

    changes: tuple[Mapping[str, Any], ...] = ()
    starts: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> History:
        """The history that an event log tells."""
        found = cls()
        for event in events:
            found = found.after(event)
        return found

    def after(self, event: Mapping[str, Any]) -> History:
        """The history with one more event."""
        if event["event"] == "rollback":
            done = event["to"]
            place = self.index(event["step"])
        elif event["event"] == "declared" and "run" in event:
            done = event["step"]
            old, new = event["fields"].get("train.batch_size", (1, 1))
            place = 0 if event["data"] != event["new_data"] else -(-self.index(done) * old // new)
        else:
            return self
        left = bisect.bisect_left(self.starts, done)
        return History((*self.changes, event), (*self.starts[:left], done), (*self.offsets[:left], place - done))

    @property
    def rollbacks(self) -> tuple[Rollback, ...]:
        """The rollbacks, in their order."""
        found = (event for event in self.changes if event["event"] == "rollback")
        return tuple(Rollback(*(event[name] for name in Rollback._fields)) for event in found)

    @property
    def declared(self) -> tuple[Mapping[str, Any], ...]:
        """The events of the changes that were declared, in their order."""
        return tuple(event for event in self.changes if event["event"] == "declared")

    def first(self, count: int) -> History:
        """The history before rollback `count`, from 0."""
        places = [place for place, event in enumerate(self.changes) if event["event"] == "rollback"]
        return self if count >= len(places) else History.of(self.changes[: places[count]])

    def index(self, done: int) -> int:
        """The place in the order of the batch that follows `done` steps."""
        before = bisect.bisect_right(self.starts, done)
        return done + (self.offsets[before - 1] if before else 0)

    def cursor(self, done: int) -> int:
        """Batches of the order that the run had come past after `done` steps: the `data_cursor` of that checkpoint."""
        return self.index(done - 1) + 1 if done else 0

    def undone(self, done: int, cursor: int) -> bool:
        """Whether a checkpoint of `done` steps with this `data_cursor` is of steps that were taken back."""
        if cursor == self.cursor(done):
            return False
        return any(back.to < done and cursor == self.first(count).cursor(done) for count, back in enumerate(self.rollbacks))


def cursor_of(manifest: Manifest, history: History, artifact: object) -> Finding:
    """Whether a checkpoint has come as far in the order of the batches as its step and the history say."""
    done, found = manifest.facts["step"], manifest.facts["data_cursor"]
    expected = history.cursor(done)
    remedy = "Restore events.jsonl from a copy: its rollbacks are not those that the checkpoint was made after."
    if history.undone(done, found):
        remedy = "A rollback took it back, and was cut off before it was removed: `jaxlm train` of the run removes it."
    what = "a checkpoint whose data cursor is"
    return Finding("checkpoint", str(artifact), found == expected, f"{what} {expected}", f"{found}", remedy)


def checkpoint_before(events: Iterable[Mapping[str, Any]], *, step: int, detector: str, saved: Iterable[int]) -> int:
    """The newest of the `saved` steps before `step` whose own steps, those since the save before it, had no alarm of
    `detector`; 0, the beginning of the run, where there is none.

    events: of the run so far. Alarms and saves of steps that were taken back, or are done again after a kill, do not count.
    """
    alarms, saves = list[int](), {0}
    for event in events:
        if event["event"] == "alarm" and event["detector"] == detector:
            alarms.append(event["step"])
        elif event["event"] == "save":
            saves.add(event["step"])
        elif event["event"] in ("rollback", "start"):
            kept = event["to"] if event["event"] == "rollback" else event["step"]
            alarms, saves = [at for at in alarms if at <= kept], {at for at in saves if at <= kept}
    for found in sorted(saved, reverse=True):
        began = max(at for at in saves | {0} if at < found) if found else 0
        if found < step and not any(began < at <= found for at in alarms):
            return found
    return 0
