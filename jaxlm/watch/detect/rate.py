"""The learning rate: what the schedule says of the step, or, where no schedule is known, no jump."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.optim.reference import same_rate
from jaxlm.watch.detect.alarms import Alarm, alarm, applied, figure
from jaxlm.watch.detect.expected import Expected

RATES = 32  # rates that a jump is judged by
JUMP_SHARE, JUMP_TIMES = 0.1, 5.0  # of the rate, and times the largest move of the last steps


class Rate(NamedTuple):
    """rates: float64 [RATES], oldest first, NaN where there is none. missed: updates that were not made so far. declared:
    whether a warm restart was, after which the schedule of the config is no longer the run's."""

    rates: np.ndarray
    missed: int = 0
    declared: bool = False


def rate() -> Rate:
    """The state before the first step."""
    return Rate(np.full(RATES, math.nan))


def restarted(state: Rate, *, known: bool = False) -> Rate:
    """After a declared warm restart. known: whether the schedule that is expected from here on is the new one."""
    return Rate(np.full(RATES, math.nan), state.missed, not known)


def observe(state: Rate, record: Mapping[str, Any], expected: Expected) -> tuple[Rate, list[Alarm]]:
    """`learning_rate`, from the first step on with a schedule, from the 33rd without. Budget 0."""
    lr, step = figure(record, "lr"), int(record["step"])
    missed = state.missed + (not applied(record))
    if math.isnan(lr):
        return state._replace(missed=missed), []
    moved = Rate(np.append(state.rates[1:], lr), missed, state.declared)
    table = None if state.declared else expected.lr
    if table is not None and 1 <= step <= len(table):
        # A step that is skipped is no update, so the count of updates may lag behind that of steps, by as many at most.
        possible = table[max(0, step - 1 - state.missed) : step]
        near = possible[np.argmin(np.abs(possible - lr))]
        if same_rate(lr, near, table.max()):
            return moved, []
        wanted, found = float(table[step - 1]), f"{lr:.6g}"
        why = f"{wanted:.6g}, by the schedule at step {step}"
        ratio = lr / wanted if wanted else math.inf
        return moved, [alarm("learning_rate", record, "learning rate", expected=why, found=found, value=ratio, threshold=1.0)]
    if np.isnan(state.rates).any():
        return moved, []
    change, usual = abs(lr - state.rates[-1]), float(np.abs(np.diff(state.rates)).max())
    if change <= max(JUMP_SHARE * state.rates[-1], JUMP_TIMES * usual):
        return moved, []
    why, value = f"about {state.rates[-1]:.6g}", lr / state.rates[-1] if state.rates[-1] else math.inf
    return moved, [alarm("learning_rate", record, "learning rate", expected=why, found=f"{lr:.6g}", value=value, threshold=1.0)]
