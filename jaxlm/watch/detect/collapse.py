"""A collapse of representations: the last activations come to point one way, whatever the position, and the loss pays for it.

All runs pass through such a state once: first they learn how frequent each token is, which is one vector for all positions.
Their loss falls meanwhile. So it is a collapse where positions were told apart at a lower loss before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, applied, figure
from jaxlm.watch.detect.expected import Expected

STEPS = 8  # that a similarity holds, and whose losses are compared by their medians
APART, ALIKE = 0.8, 0.95  # similarities: at most that where positions are told apart, at least that where they are not
WORSE = 0.1  # nats: what a collapse costs at least; it ends near the entropy of the tokens, which is nats above


class Collapse(NamedTuple):
    """recent: float64 [STEPS, 2], similarity and loss of the last applied steps, oldest first, NaN where there is none. best:
    the lowest median loss of STEPS steps in which positions were told apart, infinite before."""

    recent: np.ndarray
    best: float = math.inf


def collapse() -> Collapse:
    """The state before the first step."""
    return Collapse(np.full((STEPS, 2), math.nan))


def observe(state: Collapse, record: Mapping[str, Any], expected: Expected) -> tuple[Collapse, list[Alarm]]:
    """`representation_collapse`, from the 16th applied step on. Budget 0.01."""
    now = (figure(record, "similarity"), figure(record, "loss"))
    if not applied(record) or not np.isfinite(now).all():
        return state, []
    recent = np.append(state.recent[1:], [now], axis=0)
    alike, loss = recent[:, 0], float(np.median(recent[:, 1]))
    best = min(state.best, loss) if (alike <= APART).all() else state.best
    state = Collapse(recent, best)
    if not ((alike >= ALIKE).all() and loss > best + WORSE):
        return state, []
    why = f"positions that are told apart, as at a loss of {best:.4g}"
    found = f"a mean cosine of {alike.min():.3g} or more in {STEPS} steps, at a loss of {loss:.4g}"
    return state, [
        alarm(
            "representation_collapse", record, "last activations", expected=why, found=found, value=alike.min(), threshold=ALIKE
        )
    ]
