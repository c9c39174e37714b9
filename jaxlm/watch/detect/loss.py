"""The loss: spikes and drops of a step or two, shifts that stay, and values that no healthy run has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.cusum import FAST, Level, follow, level
from jaxlm.watch.detect.expected import Expected
from jaxlm.watch.detect.robust import REFRESH, SIGMA

WIDTH, NEWEST, LEAST = 128, 16, 32  # samples for the scale, of them for the level, and those before the first verdict
# Heavy tails make a single step cheap: of Student t noise with 5 degrees of freedom, 1 in 4e5 lies 16 robust deviations above.
SPIKE_Z, SPIKE_NATS = 16.0, 0.2  # one step
SOFT_Z, SOFT_NATS = 9.0, 0.1  # two steps in a row
DROP_Z, DROP_SHARE, DROP_STEPS = 8.0, 0.1, 3  # below the median, and of it
LEAST_SCALE = 0.005  # nats
FLOOR = 0.3  # bits per byte of text that no model has learnt by heart
CEILING, HIGH = 1.02, 1.1  # shares of a uniform guess: `CEILING_STEPS` steps in a row, and one step
FLOOR_STEPS, CEILING_STEPS, CEILING_FROM = 3, 16, 100


class Loss(NamedTuple):
    """past: float64 [WIDTH], the last finite losses, oldest first, NaN where there is none. usual, scale: what the next is
    judged by, NaN before `LEAST`; seen: finite losses so far. level: of the CUSUM. high, low, under, over: steps in a row."""

    past: np.ndarray
    level: Level
    usual: float = math.nan
    scale: float = math.nan
    seen: int = 0
    high: int = 0
    low: int = 0
    under: int = 0
    over: int = 0


def loss() -> Loss:
    """The state before the first step."""
    return Loss(np.full(WIDTH, math.nan), level())


def observe(state: Loss, record: Mapping[str, Any], expected: Expected) -> tuple[Loss, list[Alarm]]:
    """`loss_spike` and `loss_drop` from the 33rd finite loss on, `loss_shift` from the 193rd, `loss_ceiling` after 100 steps,
    the others at once. Budgets 0.3, 0.03, 0.2 in 1e5, and 0."""
    value = figure(record, "loss")
    if not math.isfinite(value):
        return state, []
    middle = state.usual
    rise = value - middle
    z = rise / state.scale
    high = state.high + 1 if z > SOFT_Z and rise > SOFT_NATS else 0
    low = state.low + 1 if z < -DROP_Z and -rise > DROP_SHARE * middle else 0
    alarms: list[Alarm] = []
    if high >= 2 or (z > SPIKE_Z and rise > SPIKE_NATS):
        limit = SPIKE_Z if high < 2 else SOFT_Z
        alarms.append(_jump("loss_spike", record, middle, z, limit))
    if low >= DROP_STEPS:
        alarms.append(_jump("loss_drop", record, middle, z, -DROP_Z))
    following, shift = follow(state.level, int(record["step"]), value)
    if shift is not None:
        alarms.append(
            alarm(
                "loss_shift",
                record,
                "loss",
                expected="a loss along its own trend",
                found=f"a lasting {shift:+.3g} nats",
                value=following.fast,
                threshold=FAST[1],
            )
        )
    bits = figure(record, "bits_per_byte")
    under = state.under + 1 if bits < FLOOR else 0
    guess = expected.uniform_loss
    over = state.over + 1 if guess is not None and record["step"] > CEILING_FROM and value > CEILING * guess else 0
    alarms += _absolute(record, expected, value, bits, under, over)
    past, seen = np.append(state.past[1:], value), state.seen + 1
    usual, scale = _usual(past[-seen:]) if seen >= LEAST and seen % REFRESH == 0 else (state.usual, state.scale)
    return Loss(past, following, usual, scale, seen, high, low, under, over), alarms


def _usual(past: np.ndarray) -> tuple[float, float]:
    """Median of the newest losses, and the robust deviation of all from the line through the medians of their halves.

    The line takes the fall of the loss out of its scale. It is not drawn on to the next step: a curve that bends lies above it.
    """
    half = len(past) // 2
    low, high = float(np.median(past[:half])), float(np.median(past[-half:]))
    rest = past - np.arange(len(past)) * (high - low) / (len(past) - half)
    scale = SIGMA * float(np.median(np.abs(rest - np.median(rest))))
    return float(np.median(past[-NEWEST:])), max(scale, LEAST_SCALE)


def _jump(detector: str, record: Mapping[str, Any], middle: float, z: float, limit: float) -> Alarm:
    found = f"{figure(record, 'loss'):.4g}, {z:+.1f} robust deviations"
    return alarm(detector, record, "loss", expected=f"about {middle:.4g}", found=found, value=z, threshold=limit)


def _absolute(
    record: Mapping[str, Any], expected: Expected, value: float, bits: float, under: int, over: int
) -> Iterator[Alarm]:
    if under >= FLOOR_STEPS:
        why = f"at least {FLOOR} bits per byte: less is a label that the model can see, or a text learnt by heart"
        yield alarm("loss_floor", record, "bits per byte", expected=why, found=f"{bits:.3g}", value=bits, threshold=FLOOR)
    guess = expected.uniform_loss
    if guess is not None and (over >= CEILING_STEPS or (over and value > HIGH * guess)):
        why, limit = f"under ln V = {guess:.4g}, that of a uniform guess", (HIGH if over < CEILING_STEPS else CEILING) * guess
        yield alarm("loss_ceiling", record, "loss", expected=why, found=f"{value:.4g}", value=value, threshold=limit)
    if record["step"] == 1 and expected.first_loss is not None:
        least, largest = expected.first_loss
        if not least <= value <= largest:
            why, limit = (
                f"{least:.4g} to {largest:.4g} nats, of a model that has learnt nothing",
                min(max(value, least), largest),
            )
            yield alarm("first_loss", record, "loss", expected=why, found=f"{value:.4g}", value=value, threshold=limit)
