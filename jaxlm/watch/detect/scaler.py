"""The loss scale and the clipping: how often they step in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.expected import Expected

SPAN, FALLS, SETTLED = 100, 8, 20  # steps looked at; falls of the scale that are too many; steps in which it finds its size
IN_A_ROW = 5
RECENT, BEFORE, OFTEN, SELDOM = 50, 150, 0.9, 0.2  # steps and shares of clipping, now and before
FLOOR = 1.0  # a scale below shrinks gradients
FIRST = 2.0**15  # the scale that a run begins with


class Scaler(NamedTuple):
    """scale, finite: of the last step, NaN and True before the first. skips, clips: float64 [SPAN], [RECENT + BEFORE], 1 for
    a step that was skipped or clipped, NaN where there is none."""

    skips: np.ndarray
    clips: np.ndarray
    scale: float = math.nan
    finite: bool = True


def scaler() -> Scaler:
    """The state before the first step."""
    return Scaler(np.full(SPAN, math.nan), np.full(RECENT + BEFORE, math.nan))


def observe(state: Scaler, record: Mapping[str, Any], expected: Expected) -> tuple[Scaler, list[Alarm]]:
    """`loss_scale` and `scaler_thrashing` at once (the first 20 steps of a run apart), `clipping` after 200 steps. Budgets 0, 0
    and 0.02 in 1e5."""
    finite, scale = bool(record.get("finite", True)), figure(record, "loss_scale")
    scaled = scale > 1.0 if expected.scaled is None else expected.scaled
    settled = record["step"] > SETTLED
    skips = np.append(state.skips[1:], float(not finite and settled))
    clips = np.append(state.clips[1:], float(record["clipped"])) if "clipped" in record else state.clips
    alarms = [*_scale(state, record, scale, scaled), *_clipping(record, clips)]
    if scaled or state.scale > 1.0:
        alarms += _thrashing(record, skips, scale)
    return Scaler(skips, clips, scale, finite), alarms


def _scale(state: Scaler, record: Mapping[str, Any], scale: float, scaled: bool) -> Iterator[Alarm]:
    """The rule: `FIRST` in the first step, half after one that was not finite, else the same or the double; 1 where nothing is
    scaled."""
    if math.isnan(scale):
        return
    ratio = scale / state.scale if state.scale > 0.0 else math.nan
    wrong = ""
    if scale < FLOOR:
        wrong = f"at least {FLOOR:g}"
    elif not scaled and scale != 1.0:
        wrong = "1, as this precision needs no scale"
    elif scaled and record["step"] == 1 and scale != FIRST:
        wrong = f"{FIRST:g} in the first step"
    elif state.finite and ratio not in (1.0, 2.0) and not math.isnan(ratio):
        wrong = f"{state.scale:g} or twice that, after a finite step"
    elif not state.finite and state.scale > FLOOR and not ratio < 1.0:
        wrong = f"less than {state.scale:g}, after a step that was not finite"
    if wrong:
        yield alarm("loss_scale", record, "loss scale", expected=wrong, found=f"{scale:g}", value=scale, threshold=FLOOR)


def _thrashing(record: Mapping[str, Any], skips: np.ndarray, scale: float) -> Iterator[Alarm]:
    falls = int(np.nansum(skips))
    row = 0 if record["step"] <= SETTLED or record.get("finite") else int(record.get("skipped", 0))
    if falls >= FALLS or row >= IN_A_ROW:
        found = f"{falls} skipped, {row} in a row, at scale {scale:g}"
        why = f"fewer than {FALLS} skipped steps in {SPAN}, and than {IN_A_ROW} in a row"
        yield alarm("scaler_thrashing", record, "loss scale", expected=why, found=found, value=falls, threshold=FALLS)


def _clipping(record: Mapping[str, Any], clips: np.ndarray) -> Iterator[Alarm]:
    if np.isnan(clips[0]):
        return
    now, before = float(clips[BEFORE:].mean()), float(clips[:BEFORE].mean())
    if now >= OFTEN and before <= SELDOM:
        found = f"{now:.0%} of the last {RECENT} steps"
        yield alarm(
            "clipping", record, "clipped steps", expected=f"about {before:.0%}", found=found, value=now, threshold=OFTEN
        )
