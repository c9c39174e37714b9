"""Signals that leave what is usual for them: at once (a jump), or little by little over some hundred steps (a drift).

Axes: S signal, W sample of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm
from jaxlm.watch.detect.expected import Expected
from jaxlm.watch.detect.robust import Window, median_scale, push, robust_z, window
from jaxlm.watch.detect.signals import SIGNALS, Keys, Rows, rows, vector

WIDTH = 64  # samples of a window
LEAST = 48  # samples before the first verdict
YOUNG, YOUNG_TIMES = 128, 2.0  # steps in which everything still moves, and by how much more a jump must be then
HARD = 2.5  # so many times the score and the change of a jump alarm in one step, without a second one
BLOCK = 16  # steps whose median is one sample of a drift
BLOCKS, LEAST_BLOCKS = 24, 12  # blocks of its window, and those before the first verdict: 208 steps
DRIFT_Z = 8.0


class Jumps(NamedTuple):
    """keys: of the rows. past: of the logarithms. streaks: int64 [2, S], steps in a row above and below. block: float32
    [S, BLOCK], the samples since the last block; filled: how many. blocks: of their medians."""

    keys: Keys
    past: Window
    streaks: np.ndarray
    block: np.ndarray
    filled: int
    blocks: Window


def jumps() -> Jumps:
    """The state before the first step."""
    return _empty((), 0, 0)


def _empty(keys: Keys, size: int, filled: int) -> Jumps:
    block = np.full((size, BLOCK), np.nan, np.float32)
    return Jumps(keys, window(size, WIDTH), np.zeros((2, size), np.int64), block, filled, window(size, BLOCKS))


def observe(state: Jumps, record: Mapping[str, Any], expected: Expected) -> tuple[Jumps, list[Alarm]]:
    """Every detector that `SIGNALS` names: jumps from the 49th sample of a signal on, drifts from the 208th.

    A jump is a score and a factor at once, some steps in a row: the score alone is met by a signal that hardly moves, the
    factor alone by one that always does. Budgets: those of `BUDGETS`, 0.35 in 1e5 together. `embedding_rows` of an embedding
    that is no head as well: otherwise every row has a gradient, and one without says only what rounds to 0.
    """
    if expected.tied:
        record = {name: value for name, value in record.items() if name != "embed_rows_still"}
    keys, sample = _aligned(state.keys, record)
    if not keys:
        return state, []
    if keys != state.keys:
        state = _relaid(state, keys)
    state, jumped = _jumped(state, record, sample)
    state, drifted = _drifted(state, record, sample)
    return state, jumped + drifted


def _jumped(state: Jumps, record: Mapping[str, Any], sample: np.ndarray) -> tuple[Jumps, list[Alarm]]:
    table = rows(state.keys)
    z = robust_z(sample, state.past, least=table.least, samples=LEAST)
    change = sample - state.past.median
    with np.errstate(invalid="ignore"):
        both = np.stack([z, -z, change, -change]) / (YOUNG_TIMES if state.past.seen < YOUNG else 1.0)
        signed_z, signed_change = both[:2], both[2:]
        hits = (signed_z > table.z) & (signed_change > table.change)
        hard = hits & (signed_z > HARD * table.z) & (signed_change > HARD * table.change)
    streaks = np.where(hits, state.streaks + 1, 0)
    alarms = _grouped(record, table, hard | (streaks >= table.steps), z, change)
    return state._replace(past=push(state.past, sample), streaks=streaks), alarms


def _drifted(state: Jumps, record: Mapping[str, Any], sample: np.ndarray) -> tuple[Jumps, list[Alarm]]:
    """Once in `BLOCK` steps the median of a block against those of the blocks before."""
    table = rows(state.keys)
    block = state.block.copy()
    block[:, state.filled] = sample
    if state.filled + 1 < BLOCK:
        return state._replace(block=block, filled=state.filled + 1), []
    median, _, filled = median_scale(block)
    median = np.where(filled > BLOCK // 2, median, math.nan)
    z = robust_z(median, state.blocks, least=table.least, samples=LEAST_BLOCKS)
    change = median - state.blocks.median
    with np.errstate(invalid="ignore"):
        hits = (np.abs(z) > DRIFT_Z) & (change * np.sign(table.drift) > np.abs(table.drift))
    both = np.stack([hits & (table.drift > 0), hits & (table.drift < 0)])
    state = state._replace(block=np.full_like(block, np.nan), filled=0, blocks=push(state.blocks, median))
    return state, _grouped(record, table, both, z, change)


def _relaid(state: Jumps, keys: Keys) -> Jumps:
    """The state with the rows of `keys`: those that are known keep their past, new ones begin."""
    source = _sources(state.keys, keys)
    new, kept = _empty(keys, len(source), state.filled), source >= 0
    new.block[kept] = state.block[source[kept]]
    new.streaks[:, kept] = state.streaks[:, source[kept]]
    for before, after in ((state.past, new.past), (state.blocks, new.blocks)):
        for name in ("values", "median", "scale", "filled"):
            getattr(after, name)[kept] = getattr(before, name)[source[kept]]
    return new._replace(past=new.past._replace(seen=state.past.seen), blocks=new.blocks._replace(seen=state.blocks.seen))


def _sources(before: Keys, now: Keys) -> np.ndarray:
    """For each row of `now` its row in `before`, -1 for a new one: int64 [S]."""
    known, at = {}, 0
    for key in before:
        known[key] = at
        at += key[2] or 1
    found = [known[key] + layer if key in known else -1 for key in now for layer in range(key[2] or 1)]
    return np.array(found, np.int64)


def _aligned(known: Keys, record: Mapping[str, Any]) -> tuple[Keys, np.ndarray]:
    """The signals of a record in the rows that are known, then new ones; NaN for those that this record lacks."""
    keys, sample = vector(record)
    if keys == known:
        return keys, sample
    merged = known + tuple(key for key in keys if key not in known)
    source = _sources(keys, merged)
    return merged, np.where(source >= 0, np.append(sample, math.nan)[source], math.nan)


def _grouped(record: Mapping[str, Any], table: Rows, fired: np.ndarray, z: np.ndarray, change: np.ndarray) -> list[Alarm]:
    """One alarm of each detector that fired. fired: bool [2, S], up and down."""
    if not fired.any():
        return []
    by_detector: dict[str, list[int]] = {}
    for up_down, row in zip(*np.nonzero(fired), strict=True):
        signal = SIGNALS[table.signal[row]]
        jump = (signal.up, signal.down)[up_down] or signal.up
        assert jump is not None
        by_detector.setdefault(jump.detector, []).append(int(row))
    return [_alarm(record, table, detector, hit, z, change) for detector, hit in by_detector.items()]


def _alarm(record: Mapping[str, Any], table: Rows, detector: str, hit: list[int], z: np.ndarray, change: np.ndarray) -> Alarm:
    size = np.abs(change[hit])
    row = hit[int(np.argmax(size))]
    if SIGNALS[table.signal[row]].first:
        # Half of the largest change is taken for the same event, which later layers inherit.
        near = [other for other, moved in zip(hit, size, strict=True) if moved >= 0.5 * size.max()]
        row = min(near, key=lambda other: (int(table.layer[other]), -abs(float(change[other]))))
    others = f", and in {len(hit) - 1} other signals" if len(hit) > 1 else ""
    up_down = 0 if change[row] > 0 else 1
    limit = table.z[up_down, row]
    return alarm(
        detector,
        record,
        table.what[row],
        layer=int(table.layer[row]) if table.layer[row] >= 0 else None,
        expected="what it was, within its spread",
        found=f"{math.exp(change[row]):.3g} times that, {z[row]:+.1f} robust deviations{others}",
        value=float(z[row]),
        threshold=float(limit) if math.isfinite(limit) else DRIFT_Z,
    )
