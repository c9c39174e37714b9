"""Intervals for a ratio of sums over documents, and for a rate of rare events."""

from __future__ import annotations

import math

import numpy as np


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of sum(numerator) / sum(denominator), resampling documents with replacement.

    Documents, not tokens, are the unit: the tokens of one document are no independent draws. Source: Efron & Tibshirani 1993,
    section 13.3. None for a single document, which says nothing of others. Raises ValueError for empty or unequal arrays, for a
    number that is not finite, and for a denominator of 0.
    """
    n = len(numerator)
    if n == 0 or len(denominator) != n:
        raise ValueError(f"expected two equally long arrays that are not empty, found {n} and {len(denominator)}")
    rng = np.random.default_rng(seed)
    pairs = np.stack([numerator, denominator]).astype(np.float64)
    if not np.isfinite(pairs).all() or not pairs[1].sum() > 0:
        raise ValueError("expected finite numbers, and a denominator above 0, found others")
    if n == 1:
        return None
    shares = np.full(n, 1.0 / n)
    above, below = np.array([pairs @ rng.multinomial(n, shares) for _ in range(resamples)]).T  # one at a time: memory is O(n)
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def poisson_interval(count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a Poisson mean of which `count` events were seen, by bisection. Source: Garwood 1936."""

    def at_most(events: int, mean: float) -> float:
        return sum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(events + 1)) if mean else 1.0

    def mean_with(events: int, share: float) -> float:
        low, high = 0.0, 20.0 + 3.0 * count  # beyond the upper end for 95 % and less
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(events, middle) > share else (low, middle)
        return low

    tail = (1.0 - confidence) / 2
    return (mean_with(count - 1, 1.0 - tail) if count else 0.0), mean_with(count, tail)
