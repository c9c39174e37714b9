"""Intervals for a ratio of sums over documents."""

from __future__ import annotations

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
