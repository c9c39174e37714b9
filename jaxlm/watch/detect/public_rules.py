"""Two rules that public trainers guard a run with, written from their description, to be measured beside the detectors.

They are given the best case: a value that is not finite never enters the window, where it would silence the rule (or skip every
step) until it has left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import figure

WIDTH, SIGMAS = 128, 6.0


class PublicRules(NamedTuple):
    """losses, norms: float64, the last `WIDTH` finite ones at most, oldest first."""

    losses: np.ndarray
    norms: np.ndarray


def public_rules() -> PublicRules:
    """The state before the first step."""
    return PublicRules(np.zeros(0), np.zeros(0))


def observe(state: PublicRules, record: Mapping[str, Any]) -> tuple[PublicRules, list[str]]:
    """The state after a step, and the rules that fire in it.

    "nan_loss" aborts where the loss is not finite. "six_sigma" skips a step whose loss or gradient norm lies over the mean of
    the last 128 by more than 6 standard deviations, or is not finite; it begins when the window is full.
    """
    loss, norm = figure(record, "loss"), figure(record, "grad_norm")
    fired = [] if math.isfinite(loss) else ["nan_loss"]
    if _beyond(state.losses, loss) or _beyond(state.norms, norm):
        fired.append("six_sigma")
    return PublicRules(_pushed(state.losses, loss), _pushed(state.norms, norm)), fired


def _beyond(past: np.ndarray, value: float) -> bool:
    if len(past) < WIDTH:
        return False
    return not math.isfinite(value) or value > past.mean() + SIGMAS * past.std(ddof=1)


def _pushed(past: np.ndarray, value: float) -> np.ndarray:
    return np.append(past, value)[-WIDTH:] if math.isfinite(value) else past
