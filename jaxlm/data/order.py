"""The order of the training rows: a keyed permutation that is computed, not stored.

A Feistel network over the smallest even number of bits that holds n, with cycle walking back into 0..n-1 (Black & Rogaway
2002, section 4): any index is permuted alone, so the data cursor of a run is its step and nothing else.
"""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 6
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser (Appleby 2011)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the image depends on every bit of `x`."""
    for multiplier in _MULTIPLIERS:
        x = (x ^ (x >> np.uint64(33))) * multiplier
    return x ^ (x >> np.uint64(33))


def permute(indices: np.ndarray, n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Images of `indices` (integers in 0..n-1) under the permutation of 0..n-1 with key (seed, epoch), int64.

    Raises ValueError for indices out of range.
    """
    x = np.asarray(indices).astype(np.uint64)
    if n < 1 or (x >= n).any() or (np.asarray(indices) < 0).any():
        raise ValueError(f"expected indices in 0..{n - 1}, found {indices!r}")
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    digest = (
        hashlib.sha256(f"jaxlm row order {seed} {epoch}".encode()).digest()
        + hashlib.sha256(f"{epoch} {seed}".encode()).digest()
    )
    keys = np.frombuffer(digest[: 8 * ROUNDS], np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & low
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & low)
        x[outside] = (left << half) | right
        outside = x >= n
    return x.astype(np.int64)
