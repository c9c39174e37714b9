"""All detectors of a run at once: a record in, the state after it and its alarms out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxlm.watch.detect import batches, collapse, dead, exact, jumps, loss, moments, nonfinite, pace, rate, scaler, validation
from jaxlm.watch.detect.alarms import Alarm
from jaxlm.watch.detect.expected import Expected
from jaxlm.watch.detect.packing import packed, unpacked

QUIET = 32  # steps without a finding after which the same detector may alarm again: what goes on is one alarm

ALL = frozenset({"warm restart", "batch size", "mixture"})  # declared changes after which a run is another one
CHANGES = ALL | {"pause", "mesh"}  # and those after which only its pace is


class Detector(NamedTuple):
    """start: the state before the first record. observe: (state, record, expected) to the state after it and its findings.

    resets: declared changes after which it begins anew. events: whether it reads events; otherwise it reads steps.
    """

    start: Callable[[], Any]
    observe: Callable[[Any, Mapping[str, Any], Expected], tuple[Any, list[Alarm]]]
    resets: frozenset[str] = frozenset()
    events: bool = False


DETECTORS: dict[str, Detector] = {
    "nonfinite": Detector(lambda: None, nonfinite.observe),
    "exact": Detector(exact.exact, exact.observe),
    "moments": Detector(moments.moments, moments.observe, ALL),
    "dead": Detector(dead.dead, dead.observe),
    "collapse": Detector(collapse.collapse, collapse.observe, ALL),
    "rate": Detector(rate.rate, rate.observe),
    "scaler": Detector(scaler.scaler, scaler.observe, ALL),
    "loss": Detector(loss.loss, loss.observe, ALL),
    "jumps": Detector(jumps.jumps, jumps.observe, ALL),
    "batches": Detector(batches.batches, batches.observe, ALL),
    "validation": Detector(validation.gap, validation.observe, ALL),
    "pace": Detector(pace.pace, pace.observe, CHANGES, events=True),
}


class Bank(NamedTuple):
    """states: by the name of the detector. last: the step of each alarm's last finding. mesh: the step up to which programs may
    be compiled again, after a declared change of the mesh or the batch size."""

    states: dict[str, Any]
    last: dict[str, int]
    warm: int = 0


def bank() -> Bank:
    """All detectors before the first record."""
    return Bank({name: detector.start() for name, detector in DETECTORS.items()}, {})


def observe(state: Bank, record: Mapping[str, Any], expected: Expected = Expected()) -> tuple[Bank, list[Alarm]]:
    """The state after a record of the telemetry or an event, and the alarms that begin with it.

    A finding that goes on is one alarm: a detector is heard again after `QUIET` steps without one. Events: "pace" and
    "recompiled" are judged; "declared" (with `what`, one of `CHANGES`), "mesh", "start" and "rollback" begin what they make
    another; others pass. Records may lack any field but "step" (of events, none is needed).
    Raises ValueError for a declared change that is not known.
    """
    state, _, fresh = judged(state, record, expected)
    return state, fresh


def judged(state: Bank, record: Mapping[str, Any], expected: Expected = Expected()) -> tuple[Bank, list[Alarm], list[Alarm]]:
    """The state after a record or an event, all findings in it, and those of them that begin an alarm: see `observe`."""
    if "event" in record:
        if (change := _declared(record)) is not None:
            return _after(state, change, record), [], []
        if record["event"] == "recompiled" and record.get("step", 0) <= state.warm:
            return state, [], []
    states, found = dict(state.states), []
    for name, detector in DETECTORS.items():
        if detector.events == ("event" in record):
            states[name], alarms = detector.observe(states[name], record, expected)
            found += alarms
    after, fresh = noted(Bank(states, state.last, state.warm), state, found)
    return after, found, fresh


def noted(state: Bank, before: Bank, found: Iterable[Alarm]) -> tuple[Bank, list[Alarm]]:
    """The state with findings of its step in it, and those of them that begin an alarm. before: the state before the step."""
    new, fresh = dict[str, int](), []
    for alarm in found:
        if alarm.step - {**before.last, **new}.get(alarm.detector, -QUIET - 1) > QUIET:
            fresh.append(alarm)
        new[alarm.detector] = alarm.step
    return state._replace(last={**state.last, **new}), fresh


def watch(records: Iterable[Mapping[str, Any]], expected: Expected = Expected()) -> list[Alarm]:
    """The alarms of a whole run, from its records and events in their order."""
    state, found = bank(), []
    for record in records:
        state, alarms = observe(state, record, expected)
        found += alarms
    return found


def _declared(record: Mapping[str, Any]) -> str | None:
    """The change that an event declares; None for another event."""
    if record["event"] == "declared":
        if record.get("what") not in CHANGES:
            raise ValueError(f"expected a declared change of {sorted(CHANGES)}, found {record.get('what')!r}")
        return str(record["what"])
    return {"mesh": "mesh", "start": "pause", "rollback": "pause"}.get(record["event"])


def _after(state: Bank, change: str, event: Mapping[str, Any]) -> Bank:
    """The state after a declared change, whose first step is the one after that of the event.

    An event that says what differs is of a run that goes on with another config, which gives the new schedule.
    """
    step, fields = int(event.get("step", 0)), event.get("fields")
    states = {
        name: detector.start() if change in detector.resets else state.states[name] for name, detector in DETECTORS.items()
    }
    if change == "warm restart":
        states["rate"] = rate.restarted(state.states["rate"], known=fields is not None)
    if fields and not {"optim.b1", "optim.b2"}.isdisjoint(fields):  # the moments are of other decays, and keep to no bound
        states["exact"] = state.states["exact"]._replace(updates=None)
    if "batches" in states and change in ALL:  # what was seen was seen
        kept: batches.Batches = state.states["batches"]
        states["batches"] = states["batches"]._replace(crcs=kept.crcs, known=kept.known)
    warm = step + 1 if change in ("mesh", "batch size") else state.warm
    return Bank(states, state.last, warm)


def saved(state: Bank) -> dict[str, Any]:
    """The state as JSON, exactly."""
    found: dict[str, Any] = packed(state)
    return found


def loaded(found: Mapping[str, Any]) -> Bank:
    """The state that was saved. Raises KeyError or ValueError where it is of other detectors."""
    state: Bank = unpacked(bank(), dict(found))
    if set(state.states) != set(DETECTORS):
        raise ValueError(f"expected the states of {sorted(DETECTORS)}, found {sorted(state.states)}")
    return state
