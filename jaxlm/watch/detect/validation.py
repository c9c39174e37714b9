"""Training against validation text: what is far easier than the other was seen before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.expected import Expected

WIDTH, LEAST = 64, 16  # training steps whose median a validation is compared with, and the fewest
LOW, HIGH = 0.67, 1.75  # validation over training, in bits per byte
FALL, KNOWN = 0.75, 4  # of the median of the earlier ratios, which must be so many
IN_A_ROW = 2


class Gap(NamedTuple):
    """bits: float64 [WIDTH], of training, NaN where there is none. ratios: float64 [WIDTH], of validations. low, high: in a
    row."""

    bits: np.ndarray
    ratios: np.ndarray
    low: int = 0
    high: int = 0


def gap() -> Gap:
    """The state before the first step."""
    return Gap(np.full(WIDTH, math.nan), np.full(WIDTH, math.nan))


def observe(state: Gap, record: Mapping[str, Any], expected: Expected) -> tuple[Gap, list[Alarm]]:
    """`validation_gap` at the second validation in a row that is far below the training loss (its text, or its labels, leaked
    into the training), or far above it (training text that is repeated, or whose labels leak). Budget 0.02 in 1e5 steps."""
    bits = np.append(state.bits[1:], figure(record, "bits_per_byte"))
    found = record.get("validation")
    usual = float(np.median(state.bits[np.isfinite(state.bits)])) if np.isfinite(state.bits).sum() >= LEAST else math.nan
    ratio = figure(found, "bits_per_byte") / usual if found and usual > 0.0 else math.nan
    if math.isnan(ratio):
        return state._replace(bits=bits), []
    earlier = state.ratios[np.isfinite(state.ratios)]
    limit = max(LOW, FALL * float(np.median(earlier))) if len(earlier) >= KNOWN else LOW
    low = state.low + 1 if ratio < limit else 0
    high = state.high + 1 if ratio > HIGH else 0
    alarms = []
    if low >= IN_A_ROW or high >= IN_A_ROW:
        bound = limit if low else HIGH
        words = f"{'at least' if low else 'at most'} {bound:.3g} times the {usual:.3g} bits per byte of training"
        alarms.append(
            alarm(
                "validation_gap", record, "validation", expected=words, found=f"{ratio:.3g} times", value=ratio, threshold=bound
            )
        )
    return Gap(bits, np.append(state.ratios[1:], ratio), low, high), alarms
