"""Running medians of many signals at once: what is usual, how much it varies, how far a sample is from it.

The median and the median absolute deviation (MAD) stand where others take mean and standard deviation: a few wild samples, and
the fault itself, hardly move them. A sample that is not finite never enters a window: in public rules one NaN gradient norm
poisons the window and skips 129 steps.

Axes: S signal, W sample of the window, oldest first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIGMA = 1.4826  # standard deviations in a MAD, for a normal distribution: 1 / its 0.75 quantile
REFRESH = 8  # samples between two computations of median and MAD: sorting is what costs


class Window(NamedTuple):
    """The last samples of S signals. values: float32 [S, W], NaN where there is none; seen: pushes so far.

    median, scale, filled: float64 [S], float64 [S], int64 [S], of the finite samples at the last refresh; NaN where there are
    none. scale: 1.4826 MAD.
    """

    values: np.ndarray
    seen: int
    median: np.ndarray
    scale: np.ndarray
    filled: np.ndarray


def window(signals: int, width: int) -> Window:
    """An empty window."""
    nothing = np.full(signals, np.nan)
    return Window(np.full((signals, width), np.nan, np.float32), 0, nothing, nothing.copy(), np.zeros(signals, np.int64))


def push(old: Window, sample_S: np.ndarray) -> Window:
    """The window with one more sample of every signal. What is not finite counts as absent: for that signal nothing is
    pushed, so that its window holds its last W finite samples."""
    finite = np.isfinite(sample_S)
    if finite.all():
        values = np.empty_like(old.values)
        values[:, :-1] = old.values[:, 1:]
        values[:, -1] = sample_S
    else:
        values = old.values.copy()
        values[finite, :-1] = old.values[finite, 1:]
        values[finite, -1] = sample_S[finite]
    seen = old.seen + 1
    # At the start a sample is a large share of the window.
    if seen % REFRESH and seen > REFRESH:
        return old._replace(values=values, seen=seen)
    return Window(values, seen, *median_scale(values))


def median_scale(values_SW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, 1.4826 MAD and number of the finite samples of each row: float64 [S], float64 [S], int64 [S]."""
    filled = np.isfinite(values_SW).sum(axis=1)
    median = _median(values_SW, filled)
    return median, SIGMA * _median(np.abs(values_SW - median[:, None].astype(values_SW.dtype)), filled), filled


def _median(values_SW: np.ndarray, filled_S: np.ndarray) -> np.ndarray:
    """float64 [S], NaN for rows without a sample. NaN sorts last; values hold no infinities."""
    rows, ordered = np.arange(len(values_SW)), np.sort(values_SW, axis=1)
    low, high = np.maximum(filled_S - 1, 0) // 2, np.minimum(filled_S // 2, values_SW.shape[1] - 1)
    return (ordered[rows, low].astype(np.float64) + ordered[rows, high]) / 2


def robust_z(sample_S: np.ndarray, of: Window, *, least: np.ndarray | float, samples: int) -> np.ndarray:
    """How many robust standard deviations each sample lies above the median of its window, float64 [S].

    least: the smallest scale that is believed, which keeps a signal that hardly moves from alarming at nothing. NaN where the
    window holds fewer than `samples`, or the sample is not finite.
    """
    z = (sample_S - of.median) / np.maximum(of.scale, least)
    return np.where((of.filled >= samples) & np.isfinite(z), z, np.nan)
