"""Applying the merges to one pre-token: always the pair of lowest rank, the leftmost of equals.

A pair of tokens has a rank, its place among the merges, and makes a token; both in one integer, so that the smallest of them is
the merge that comes next.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[int, int]

NONE = 1 << 62  # above every product
SCAN = 64  # tokens up to which scanning all pairs beats a heap; longer pre-tokens would take quadratic time
TOKEN = (1 << 32) - 1  # the bits of a product that hold the token


def product_of(rank: int, token: int) -> int:
    """Rank and token of a merge in one integer: the rank in the upper 32 bits."""
    return rank << 32 | token


def merge(tokens: list[int], product: Mapping[Pair, int]) -> list[int]:
    """Merge until no pair of neighbours has a product. product: pair of tokens -> `product_of(rank, token)`."""
    if len(tokens) > SCAN:
        return _merge_long(tokens, product)
    while len(tokens) > 1:
        new, at = min((product.get(pair, NONE), at) for at, pair in enumerate(pairwise(tokens)))
        if new == NONE:
            break
        tokens[at : at + 2] = [new & TOKEN]
    return tokens


def _merge_long(tokens: list[int], product: Mapping[Pair, int]) -> list[int]:
    """The same through a linked list and a heap, O(n log n)."""
    n = len(tokens)
    tokens = list(tokens)
    following, before = [*range(1, n), -1], [*range(-1, n - 1)]
    heap = [(product[pair], at) for at, pair in enumerate(pairwise(tokens)) if pair in product]
    heapq.heapify(heap)
    while heap:
        new, at = heapq.heappop(heap)
        right = following[at]
        if tokens[at] < 0 or right < 0 or product.get((tokens[at], tokens[right])) != new:
            continue  # one of the two has been merged since
        made = new & TOKEN
        tokens[at], tokens[right] = made, -1
        following[at] = after = following[right]
        if after >= 0:
            before[after] = at
            if (then := product.get((made, tokens[after]))) is not None:
                heapq.heappush(heap, (then, at))
        if (left := before[at]) >= 0 and (then := product.get((tokens[left], made))) is not None:
            heapq.heappush(heap, (then, left))
    return [token for token in tokens if token >= 0]
