"""A level shift of the loss: a small rise that stays, which no single step shows.

The loss is compared with a line through its past that leaves the last `GAP` steps out, so that a shift does not hide itself.
The line runs over the logarithm of the step, in which a falling loss is nearly straight. What the line misses is judged by
what lines before it missed, at the same distance: its bias where the curve bends, its scale, its memory from step to step.
The scores, clipped so that a spike alone is no shift, go into two one-sided sums (Page 1954), one for small shifts and one
for large ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxlm.watch.detect.robust import SIGMA

PAST, GAP = 512, 64  # steps that a line is laid through, and those between its end and now
LEAST = 32  # samples that a line, and the judgement of lines, needs: the first verdict comes at step 2 (LEAST + GAP) + 1
REFIT = 8  # samples between two lines
CLIP = 4.0  # largest score of a step
# (allowance, threshold) in standard deviations: a shift of twice the allowance is found fastest.
SE = 1.5  # standard errors of the line that are allowed on top
SLOW, FAST = (0.4, 16.0), (1.5, 10.0)


class Line(NamedTuple):
    """loss = intercept + slope ln(step); error: standard error of its value at the end of the gap, per unit of scale."""

    intercept: float
    slope: float
    error: float


class Level(NamedTuple):
    """losses, steps, misses: float64 [PAST + GAP], oldest first, NaN where there is none; misses: loss minus line, at its time.

    seen: samples so far. bias, scale: of the misses; scale 0 until they are known. slow, fast: the sums.
    """

    losses: np.ndarray
    steps: np.ndarray
    misses: np.ndarray
    seen: int = 0
    line: Line = Line(math.nan, 0.0, 0.0)
    bias: float = 0.0
    scale: float = 0.0
    slow: float = 0.0
    fast: float = 0.0


def level() -> Level:
    """The state before the first step."""
    nothing = np.full(PAST + GAP, math.nan)
    return Level(nothing, nothing.copy(), nothing.copy())


def follow(state: Level, step: int, loss: float) -> tuple[Level, float | None]:
    """The state after one more finite loss, and the rise over the expected level in nats, where it is a shift."""
    miss, slow, fast = math.nan, 0.0, 0.0
    if math.isfinite(state.line.intercept):
        miss = loss - (state.line.intercept + state.line.slope * math.log(step))
    if state.scale > 0.0:
        score = min(max((miss - state.bias) / state.scale, -CLIP), CLIP)
        slow, fast = (
            # Kept under twice the threshold, so that it comes down when the shift is over or has become the level.
            min(max(0.0, old + score - allowance - SE * state.line.error), 2.0 * threshold)
            for old, (allowance, threshold) in ((state.slow, SLOW), (state.fast, FAST))
        )
    shifted = slow > SLOW[1] or fast > FAST[1]
    state = state._replace(
        losses=_appended(state.losses, loss),
        steps=_appended(state.steps, float(step)),
        misses=_appended(state.misses, miss),
        seen=state.seen + 1,
        slow=slow,
        fast=fast,
    )
    if state.seen % REFIT == 0:
        state = _refitted(state)
    recent = state.misses[-GAP:]
    return state, float(np.nanmedian(recent[-8:])) - state.bias if shifted else None


def _appended(old: np.ndarray, value: float) -> np.ndarray:
    new = np.empty_like(old)
    new[:-1], new[-1] = old[1:], value
    return new


def _refitted(state: Level) -> Level:
    known = np.isfinite(state.losses[:-GAP])
    # Half of all steps at most: early on the curve bends too much for more.
    count = min(int(known.sum()), max(LEAST, state.seen // 2))
    if count < LEAST:
        return state
    now = math.log(state.steps[-1])
    line = _line(np.log(state.steps[:-GAP][known][-count:]), state.losses[:-GAP][known][-count:], now)
    misses = state.misses[:-GAP][np.isfinite(state.misses[:-GAP])]
    if len(misses) < LEAST:
        return state._replace(line=line)
    # While the curve straightens the misses shrink: their trend widens the scale, and keeps the early steps from alarming.
    bias = float(np.median(misses[-4 * LEAST :]))
    deviation = misses - np.median(misses)
    scale = SIGMA * float(np.median(np.abs(deviation)))
    if scale == 0.0:
        return state._replace(line=line)
    memory = _memory(np.clip(deviation / scale, -CLIP, CLIP))
    # A sum of n samples that remember grows like n (1 + memory) / (1 - memory), the long-run variance of an AR(1).
    scale *= math.sqrt((1.0 + memory) / (1.0 - memory))
    # A curve that bends upwards lies above its lines; one that lies below them gives no licence to come back.
    return state._replace(line=line, bias=max(bias, 0.0), scale=scale)


def _memory(scores: np.ndarray) -> float:
    """Correlation of one step with the next, between 0 and 0.9."""
    power = float(np.mean(scores * scores))
    return min(max(float(np.mean(scores[1:] * scores[:-1])) / power, 0.0), 0.9) if power else 0.0


def _line(x: np.ndarray, y: np.ndarray, at: float) -> Line:
    """A line by one step of Huber's estimator: medians of the halves give a first one, least squares through the samples,
    each drawn to within three scales of it, give the second. `at`: where its error is wanted."""
    half = len(x) // 2
    left, right = slice(None, half), slice(half, None)
    centres = float(np.median(x[left])), float(np.median(x[right]))
    levels = float(np.median(y[left])), float(np.median(y[right]))
    slope = (levels[1] - levels[0]) / (centres[1] - centres[0])
    rest = y - (levels[1] + slope * (x - centres[1]))
    middle = float(np.median(rest))
    reach = 3.0 * SIGMA * float(np.median(np.abs(rest - middle)))
    drawn = y - rest + np.clip(rest, middle - reach, middle + reach)
    mean, spread = float(np.mean(x)), x - np.mean(x)
    total = float(spread @ spread)
    slope = float(spread @ drawn) / total
    return Line(float(np.mean(drawn)) - slope * mean, slope, math.sqrt(1.0 / len(x) + (at - mean) ** 2 / total))
