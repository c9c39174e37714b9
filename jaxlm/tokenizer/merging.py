"""Applying the merges to one pre-token: always the pair of lowest rank, the leftmost of equals.

Ids below 256 are bytes; the merge of rank r makes id 256 + r, so the pair of lowest rank is the one that makes the smallest id.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[int, int]

NONE = 1 << 62  # above every id
SCAN = 64  # ids up to which scanning all pairs beats a heap; longer pre-tokens would take quadratic time


def merge(ids: list[int], product: Mapping[Pair, int]) -> list[int]:
    """Merge until no pair of neighbours has a product. product: pair of ids -> id of their concatenation."""
    if len(ids) > SCAN:
        return _merge_long(ids, product)
    while len(ids) > 1:
        new, at = min((product.get(pair, NONE), at) for at, pair in enumerate(pairwise(ids)))
        if new == NONE:
            break
        ids[at : at + 2] = [new]
    return ids


def _merge_long(ids: list[int], product: Mapping[Pair, int]) -> list[int]:
    """The same through a linked list and a heap, O(n log n)."""
    n = len(ids)
    ids = list(ids)
    following, before = [*range(1, n), -1], [*range(-1, n - 1)]
    heap = [(product[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in product]
    heapq.heapify(heap)
    while heap:
        new, at = heapq.heappop(heap)
        right = following[at]
        if ids[at] < 0 or right < 0 or product.get((ids[at], ids[right])) != new:
            continue  # one of the two has been merged since
        ids[at], ids[right] = new, -1
        following[at] = after = following[right]
        if after >= 0:
            before[after] = at
            if (made := product.get((new, ids[after]))) is not None:
                heapq.heappush(heap, (made, at))
        if (left := before[at]) >= 0 and (made := product.get((ids[left], new))) is not None:
            heapq.heappush(heap, (made, left))
    return [token for token in ids if token >= 0]
