"""The detectors over a run while it is trained, and what is done about what they find.

Every alarm is an event and a line; the step gets a bundle of the flight recorder, as far as there is room. A detector that
`watch.stop_at` names ends the run. One that `watch.skip_at` names takes back the update of every step in which it finds
something, also where that goes on and is no new alarm; one that `watch.rollback_at` names takes the run back by its alarm. What
the detectors know is saved with every checkpoint.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config.schema import RunConfig, WatchConfig
from jaxlm.contract import ContractError, InputError
from jaxlm.data import Batch
from jaxlm.parallel import processes
from jaxlm.run import Layout
from jaxlm.train.recorder import Recorder
from jaxlm.train.state import TrainState
from jaxlm.watch.detect import BUDGETS, OF_EVENTS, Action, Alarm, bank, expected_of, judged, loaded, noted, observe, saved

RING = 64  # steps before an alarm whose telemetry goes into its bundle

_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Alarms:
    """event: writes one line of the event log. say: takes a line for a person."""

    def __init__(self, cfg: RunConfig, layout: Layout, *, event: Callable[..., None], say: Callable[[str], None]):
        """Raises InputError as `chosen` does."""
        self.cfg, self.layout, self._event, self.say = cfg, layout, event, say
        self.expected, self._bank = expected_of(cfg), bank()
        self.recorder = Recorder(layout.bundles, ring=RING, keep=cfg.watch.bundles)
        self.stop_at, self.skip_at, self.rollback_at = chosen(cfg.watch)

    def saved(self) -> dict[str, Any]:
        """The detectors as they stand, as JSON, for a checkpoint."""
        return saved(self._bank)

    def go_on(self, found: Mapping[str, Any] | None) -> None:
        """Let the detectors stand where they stood when `saved` gave this; None begins them anew, as another version does."""
        try:
            self._bank = bank() if found is None else loaded(found)
        except (KeyError, TypeError, ValueError) as error:
            self._bank = bank()
            self.say(f"  the detectors of the checkpoint are not those of this version ({error}); they begin anew")

    def began(self, state: TrainState) -> dict[str, Any]:
        """What of a state changes although nothing is updated: to be asked for before the step, whose state is donated."""
        return dict(_copied({"step": state.step, "loss_scale": state.loss_scale, "skipped": state.skipped}))

    def go_back(self, to: int) -> None:
        """Forget the steps after `to`; where the detectors stood then, `go_on` has said."""
        self.recorder.forget(after=to)
        self.event({"event": "rollback", "step": to})

    def against(self, record: Mapping[str, Any]) -> list[Alarm]:
        """What detectors in `watch.skip_at` find in the record of a step, alarms or not, before `step` takes it in."""
        if not self.skip_at:
            return []
        _, found, _ = judged(self._bank, record, self.expected)
        return [alarm for alarm in found if alarm.detector in self.skip_at]

    def event(self, record: Mapping[str, Any]) -> None:
        """Take in an event: the pace, a program compiled again, a declared change. Raises as `step` does."""
        self._bank, found = observe(self._bank, record, self.expected)
        self._tell(found, None)

    def step(
        self,
        record: Mapping[str, Any],
        *,
        batch: Batch,
        state: TrainState,
        began: Mapping[str, Any],
        parents: Mapping[str, str],
        checkpoint: int | None,
        against: Sequence[Alarm] = (),
    ) -> Alarm | None:
        """Take in the record of a step. batch: as it was fed. state: after it. began: what `began` gave before it. parents: of
        a checkpoint. checkpoint: the newest step saved. against: what took the update back, if anything did.

        Returns an alarm for which the run shall go back. Raises ContractError for one of a detector that ends the run.
        """
        before = self._bank
        self._bank, found = observe(before, record, self.expected)
        if against:
            # Without its update the step may show nothing of what spoke against it.
            self._bank, fresh = noted(self._bank, before, against)
            found = [*fresh, *(alarm for alarm in found if alarm.detector not in {a.detector for a in against})]
        self.recorder.step(record)
        if not found:
            return None
        self._tell(found, self._bundle(record, found, batch, state, began, parents, checkpoint))
        return next((alarm for alarm in found if alarm.detector in self.rollback_at), None)

    def _bundle(
        self,
        record: Mapping[str, Any],
        found: list[Alarm],
        batch: Batch,
        state: TrainState,
        began: Mapping[str, Any],
        parents: Mapping[str, str],
        checkpoint: int | None,
    ) -> str | None:
        """Where the bundle lies, seen from the run; None where there is none. A step that was skipped has left its state."""
        if processes.several() or not self.cfg.watch.bundles:
            return None
        left = "taken_back" in record or (not record["finite"] and record["nonfinite"] != "the update")
        before = dataclasses.replace(state, **began) if left else None
        path = self.recorder.bundle(
            record["step"],
            [alarm.as_json() for alarm in found],
            batch=batch,
            parents=parents,
            state=before,
            checkpoint=checkpoint,
        )
        return None if path is None else path.relative_to(self.layout.path).as_posix()

    def _tell(self, found: list[Alarm], bundle: str | None) -> None:
        """Log alarms, and raise ContractError at the first of a detector that ends the run."""
        for alarm in found:
            self._event("alarm", **alarm.as_json(), action=self._action(alarm.detector), bundle=bundle)
            self.say(f"ALARM {alarm.words()}")
        for alarm in found:
            if alarm.detector in self.stop_at:
                raise ContractError(
                    alarm.detector,
                    artifact=f"{self.layout.path}, step {alarm.step} ({alarm.what})",
                    expected=alarm.expected,
                    found=alarm.found,
                    remedy=f"`jaxlm replay {self.layout.path} --step {alarm.step}` looks into the step.",
                )

    def _action(self, detector: str) -> Action:
        """What the config chose to be done at an alarm."""
        chosen: dict[Action, tuple[str, ...]] = {"stop": self.stop_at, "rollback": self.rollback_at, "skip": self.skip_at}
        return next((action for action, names in chosen.items() if detector in names), "log")


class Chosen(NamedTuple):
    """The detectors that do more than log, by what they do."""

    stop_at: tuple[str, ...]
    skip_at: tuple[str, ...]
    rollback_at: tuple[str, ...]


def chosen(watch: WatchConfig) -> Chosen:
    """What a config chooses, before anything is made for it.

    Raises InputError for a detector that there is none of, or that judges no single step where that is needed; and for
    rollbacks in a cluster.
    """
    of_steps = [name for name in BUDGETS if name not in OF_EVENTS]
    found = Chosen(
        _named("--watch.stop-at", watch.detectors("stop_at"), list(BUDGETS)),
        _named("--watch.skip-at", watch.detectors("skip_at"), [name for name in of_steps if name != "validation_gap"]),
        _named("--watch.rollback-at", watch.detectors("rollback_at"), of_steps),
    )
    if found.rollback_at and processes.several():
        raise InputError(
            f"--watch.rollback-at: expected a run of one process, found one of {processes.count()}; name the detectors in "
            "--watch.stop-at, and start the run again"
        )
    return found


def _named(flag: str, names: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    """`names`, all of which are known. Raises InputError."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            nearest = f"; the nearest is {close[0]}" if close else ""
            raise InputError(f"{flag}: expected names of {', '.join(known)}, found {name}{nearest}")
    return names
