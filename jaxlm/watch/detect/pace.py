"""How fast a run goes, and what it waits for: from events, which hold times, not from the telemetry, which holds none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.expected import Expected
from jaxlm.watch.detect.robust import Window, push, window

WIDTH, LEAST = 32, 6  # events of the window, and those before the first verdict
SLOWER, WAITING = 3.0, 0.5  # times the usual seconds of a step; share of the time that goes into waiting for a batch
IN_A_ROW = 3


class Pace(NamedTuple):
    """past: of the logarithm of seconds per step, one signal. slow, waiting: events in a row."""

    past: Window
    slow: int = 0
    waiting: int = 0


def pace() -> Pace:
    """The state before the first event."""
    return Pace(window(1, WIDTH))


def observe(state: Pace, record: Mapping[str, Any], expected: Expected) -> tuple[Pace, list[Alarm]]:
    """`stalled_loader` from the third "pace" event on, `throughput` from the ninth, `recompilation` at once.

    Budgets 0 for a machine that does nothing else: what they say is true of the machine all the same.
    """
    if record["event"] == "recompiled":
        what, found = str(record.get("phase", "a program")), str(record.get("found", "compiled again"))
        return state, [alarm("recompilation", record, what, expected="a program that is warm", found=found)]
    if record["event"] != "pace" or not figure(record, "seconds") > 0.0:
        return state, []
    each = figure(record, "seconds") / max(figure(record, "steps"), 1.0)
    share = figure(record, "waited") / figure(record, "seconds")
    usual = math.exp(float(state.past.median[0]))
    known = bool(state.past.filled[0] >= LEAST)
    slow = state.slow + 1 if known and each > SLOWER * usual else 0
    waiting = state.waiting + 1 if share > WAITING else 0
    alarms: list[Alarm] = []
    if slow == IN_A_ROW:
        why, found = f"about {usual:.3g} s a step", f"{each:.3g} s in {IN_A_ROW} events in a row"
        alarms.append(
            alarm("throughput", record, "seconds per step", expected=why, found=found, value=each / usual, threshold=SLOWER)
        )
    if waiting == IN_A_ROW:
        why, found = "batches that are ready before the step is", f"{share:.0%} of the time waited for them"
        alarms.append(alarm("stalled_loader", record, "batches", expected=why, found=found, value=share, threshold=WAITING))
    return Pace(push(state.past, np.array([math.log(each)])), slow, waiting), alarms
