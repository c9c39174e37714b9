"""Figures of every step, reduced to what a screen can show while they come: a spike of one step stays visible.

A series has a bounded number of buckets of equally many steps. Where the steps outgrow them, neighbours are joined and a
bucket holds twice as many, so a run of any length is read once and in bounded memory.

Axes: C bucket, W figure (one, or one for each layer), S step.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

CURVE, HEAT = 2048, 512  # most buckets of a curve, and columns of a heat map
WAITING = 256  # steps that are gathered before they enter their buckets
LEVELS = 65534  # values of a heat map's cell that is finite; 65535: nothing was measured, 65534: something not finite


class Series:
    """One figure, or one for each of `width` layers, over the steps from 1 on.

    capacity: buckets, an even number. Of each bucket and figure, over its finite values: low, high, total, count, the steps
    of low and high (the first, where it occurs more than once); and bad, how many values were not finite. All are [C, W].
    last: the newest step and its figure.
    """

    def __init__(self, width: int = 1, *, capacity: int = CURVE):
        if capacity < 2 or capacity % 2:
            raise ValueError(f"expected an even capacity, found {capacity}")
        self.width, self.capacity, self.stride = width, capacity, 1
        shape = (capacity, width)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._total = np.zeros(shape)
        self._count, self._bad = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._low_step, self._high_step = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._steps: list[int] = []
        self._values: list[Any] = []
        self._used = 0
        self.last: tuple[int, Any] | None = None

    def add(self, step: int, value: float | list[float]) -> None:
        """One step's figure, or [W] figures. A step that comes twice, as after a rollback, counts twice."""
        self.last = step, value
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) >= WAITING:
            self._enter()

    def _enter(self) -> None:
        if not self._steps:
            return
        steps_S = np.asarray(self._steps, np.int64)
        values_SW = np.asarray(self._values, np.float64).reshape(len(steps_S), self.width)
        self._steps, self._values = [], []
        while (int(np.max(steps_S)) - 1) // self.stride >= self.capacity:
            self._join()
        order = np.argsort(steps_S, kind="stable")
        steps_S, values_SW = steps_S[order], values_SW[order]
        at_C, starts, inverse = np.unique((steps_S - 1) // self.stride, return_index=True, return_inverse=True)
        finite = np.isfinite(values_SW)
        for sign, best, where in ((1.0, self._low, self._low_step), (-1.0, self._high, self._high_step)):
            signed = np.where(finite, sign * values_SW, np.inf)
            least = np.minimum.reduceat(signed, starts)
            first = np.where(signed == least[inverse], steps_S[:, None], np.iinfo(np.int64).max)
            better = least < sign * best[at_C]
            where[at_C] = np.where(better, np.minimum.reduceat(first, starts), where[at_C])
            best[at_C] = np.where(better, sign * least, best[at_C])
        self._total[at_C] += np.add.reduceat(np.where(finite, values_SW, 0.0), starts)
        self._count[at_C] += np.add.reduceat(finite.astype(np.int64), starts)
        self._bad[at_C] += np.add.reduceat((~finite).astype(np.int64), starts)
        self._used = max(self._used, int(at_C[-1]) + 1)

    def _join(self) -> None:
        """Two buckets become one."""
        for best, where, sign in ((self._low, self._low_step, 1.0), (self._high, self._high_step, -1.0)):
            first = sign * best[::2] <= sign * best[1::2]
            _halve(where, np.where(first, where[::2], where[1::2]), 0)
            _halve(best, np.where(first, best[::2], best[1::2]), sign * np.inf)
        for sums in (self._total, self._count, self._bad):
            _halve(sums, sums[::2] + sums[1::2], 0)
        self.stride, self._used = 2 * self.stride, (self._used + 1) // 2

    def buckets(self) -> dict[str, np.ndarray]:
        """low, high, mean (NaN where nothing finite was), low_step, high_step, count, bad: [C, W] up to the last bucket."""
        self._enter()
        low, high, total, count, bad = (a[: self._used] for a in (self._low, self._high, self._total, self._count, self._bad))
        some = count > 0
        with np.errstate(over="ignore"):
            mean = np.where(some, total / np.maximum(count, 1), np.nan)
        return {
            "low": np.where(some, low, np.nan),
            "high": np.where(some, high, np.nan),
            "mean": mean,
            "low_step": self._low_step[: self._used],
            "high_step": self._high_step[: self._used],
            "count": count,
            "bad": bad,
        }


def _halve(array: np.ndarray, joined: np.ndarray, empty: float) -> None:
    array[: len(joined)] = joined
    array[len(joined) :] = empty


# ---- for the page ------------------------------------------------------------------------------------------------


def packed(array: np.ndarray, dtype: npt.DTypeLike) -> str:
    """The values as little-endian bytes in base64."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def curve(series: Series) -> dict[str, Any] | None:
    """A series of one figure for the page's script; None where it has no value.

    x: the first step of each bucket that has one, uint32. mean, low, high: float32. low_step, high_step: how far into the
    bucket the extremes are, uint16 where the stride allows. bad: first steps of buckets with values that are not finite,
    uint32. last: the newest step and its figure, if that is finite. Where low and high are equal everywhere, mean says it all
    and they are left out.
    """
    found = {name: value[:, 0] for name, value in series.buckets().items()}
    kept, first = found["count"] > 0, 1 + series.stride * np.arange(len(found["count"]))
    bad = first[found["bad"] > 0]
    if not kept.any() and not bad.size:
        return None
    body: dict[str, Any] = {"stride": series.stride, "x": packed(first[kept], np.uint32)}
    body["mean"] = packed(found["mean"][kept], np.float32)
    if (found["low"][kept] != found["high"][kept]).any():
        body |= {name: packed(found[name][kept], np.float32) for name in ("low", "high")}
        for name in ("low_step", "high_step"):
            body[name] = packed(found[name][kept] - first[kept], np.uint16 if series.stride < 65536 else np.uint32)
    if series.last is not None and np.isfinite(series.last[1]):
        body["last"] = list(series.last)
    if bad.size:
        body["bad"] = packed(bad, np.uint32)
    return body


def heat(series: Series, *, reduce: str, log: bool) -> dict[str, Any] | None:
    """A series of layers for the page's script; None where it has no value.

    reduce: low or high, the figure of a bucket that is shown. log: whether colours go by the logarithm; figures that are not
    positive then take the lowest one. Cells are uint16, column by column: a finite figure is a level between `low` and
    `high` (of the logarithm), exact to one part in 65,533 of that range. The colours span `from` to `to`, the 1st and the
    99th percentile, so that a single spike does not darken the rest.
    """
    found = series.buckets()
    if not found["count"].any() and not found["bad"].any():
        return None
    values, some, bad = found[reduce].copy(), found["count"] > 0, found["bad"] > 0
    if log:
        positive = values[some & (values > 0)]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log10(np.where(values > 0, values, np.min(positive) if positive.size else 1.0))
    finite = values[some] if some.any() else np.zeros(1)
    low, high = float(np.min(finite)), float(np.max(finite))
    colours = np.percentile(finite, [1, 99])
    scale = (LEVELS - 1) / (high - low) if high > low else 0.0
    levels = np.where(some, np.round((np.nan_to_num(values) - low) * scale), LEVELS + 1)
    levels = np.where(bad, LEVELS, levels)
    return {
        "stride": series.stride,
        "layers": series.width,
        "columns": len(levels),
        "log": log,
        "low": low,
        "high": high,
        "from": float(colours[0]),
        "to": float(colours[1]),
        "cells": packed(levels, np.uint16),
    }
