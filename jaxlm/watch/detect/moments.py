"""The moments of Adam: whether an update was made as if there had been no gradient before.

With moments of 0 an update is (1 - b1) / sqrt(1 - b2) times the rate in every element that has a gradient, whatever the
gradient is: all parameters move by one and the same share of the rate. Otherwise the share is what each one's gradients make of
it, and moves from step to step by little. The loss hardly shows it: some ten steps are too large.

Axes: P parameter of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, applied, figure
from jaxlm.watch.detect.exact import flat, roots
from jaxlm.watch.detect.expected import Expected

PAST = 16  # gradients that are remembered
SURE = 2.0  # times 1 / (1 - b2): updates after which both moments have left their start behind
NEAR, ALL = 0.01, 0.75  # relative, and the share of the parameters that are so near
ABOUT, FEW = 0.05, 0.25  # and that were so near before: from step to step an honest share moves by less than what is between
LOUD = 2.0  # times its median in the past: a gradient that outweighs the moments makes the same update as one without any
APART = 0.2  # relative: where gradients that are noise alone make about the same share, nothing can be told


class Moments(NamedTuple):
    """step: the last one that was applied. about: the share of the parameters that were `ABOUT` there, NaN before. grads:
    float64 [PAST, P], their gradients' norms after clipping, oldest first, NaN where there is none."""

    step: int
    about: float
    grads: np.ndarray


def moments() -> Moments:
    """The state before the first step."""
    return Moments(0, math.nan, np.zeros((PAST, 0)))


def observe(state: Moments, record: Mapping[str, Any], expected: Expected) -> tuple[Moments, list[Alarm]]:
    """`moments_lost`, from the 17th applied step in a row on, and the update 2 / (1 - b2). Budget 0.01."""
    step, rate = int(record["step"]), figure(record, "lr")
    rows, moved = flat(record.get("update_norms", {}))
    grad_rows, grads = flat(record.get("grad_norms", {}))
    if not applied(record) or not rows or rows != grad_rows or expected.sizes is None or expected.betas is None:
        return state, []
    clip, total = expected.clip_norm, figure(record, "grad_norm")
    grads = grads * (min(1.0, clip / total) if clip and total > 0.0 else 1.0)
    past = state.grads if state.grads.shape[1] == len(rows) else np.full((PAST, len(rows)), np.nan)
    share = share_without_past(*expected.betas, step)
    root = roots(rows, expected)
    off = np.abs(moved / (rate * root * share) - 1.0) if rate > 0.0 else np.full(len(rows), math.inf)
    near, about = (float((off <= limit).mean()) for limit in (NEAR, ABOUT))
    after = Moments(step, about, np.append(past[1:], grads[None], axis=0))
    b1, b2 = expected.betas
    told = abs(share / math.sqrt((1.0 - b1) / (1.0 + b1)) - 1.0) > APART and step * (1.0 - b2) >= SURE
    if not told or not near >= ALL or not state.about <= FEW or not np.isfinite(past).all():
        return after, []
    if (grads > LOUD * np.median(past, axis=0)).mean() > FEW:
        return after, []
    found = f"one of {share:.4g} times the rate in {near:.0%} of the parameters, as of moments that are 0"
    why = "an update by gradients of many steps"
    return after, [alarm("moments_lost", record, "update", expected=why, found=found, value=near, threshold=ALL)]


def share_without_past(b1: float, b2: float, updates: int) -> float:
    """|m| / sqrt(v), both corrected for n = `updates`, where only the last gradient is in them."""
    return (1.0 - b1) / math.sqrt(1.0 - b2) * math.sqrt(1.0 - b2**updates) / (1.0 - b1**updates)
