"""Learning merges in Python: for little text, and where there is no numba."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from jaxlm.tokenizer.merging import Pair


def learned(counts: Mapping[bytes, int], wanted: int, *, by_bytes: bool) -> Iterator[Pair]:
    """Merges as pairs of tokens, at most `wanted`. Bytes are the tokens 0..255, each merge makes the next one."""
    text = [bytes([i]) for i in range(256)]
    kept = {word: count for word, count in counts.items() if count > 0}
    words = [list(word) for word in kept]
    weights = list(kept.values())
    pairs: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # words that have the pair, or once had it
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            where[pair].add(index)

    # The heap gives its smallest entry first, and a count in it may be out of date: it counts if it is the pair's count now.
    descending = [_descending(token) for token in text]
    keys: list[str] | range = descending if by_bytes else range(256 + wanted)
    heap = [(-count, keys[a], keys[b], (a, b)) for (a, b), count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(text) < 256 + wanted:
        minus_count, _, _, best = heapq.heappop(heap)
        if -minus_count != pairs.get(best, 0):
            continue
        new = len(text)
        text.append(text[best[0]] + text[best[1]])
        descending.append(_descending(text[new]))
        changed: dict[Pair, int] = {}  # counts before this merge
        for index in where.pop(best):
            _replace(words[index], best, new, weights[index], index, pairs, where, changed)
        for (a, b), count in changed.items():
            if pairs[a, b] == 0:
                del pairs[a, b]
                where.pop((a, b), None)
            elif pairs[a, b] != count:
                heapq.heappush(heap, (-pairs[a, b], keys[a], keys[b], (a, b)))
        yield best


def _descending(token: bytes) -> str:
    """A key that sorts byte strings from the greatest to the smallest: bytes inverted, and an end above all of them."""
    return "".join([chr(255 - byte) for byte in token]) + "\u0100"


def _replace(
    word: list[int],
    best: Pair,
    new: int,
    weight: int,
    index: int,
    pairs: defaultdict[Pair, int],
    where: defaultdict[Pair, set[int]],
    changed: dict[Pair, int],
) -> None:
    """Merge `best` in one word, from the left, and carry the counts of its pairs along."""
    first, second = best
    before = list(pairwise(word))
    if best not in before:
        return
    at, merged = 0, []
    while at < len(word):
        if at + 1 < len(word) and word[at] == first and word[at + 1] == second:
            merged.append(new)
            at += 2
        else:
            merged.append(word[at])
            at += 1
    word[:] = merged
    for pair in before:
        changed.setdefault(pair, pairs[pair])
        pairs[pair] -= weight
    for pair in pairwise(merged):
        changed.setdefault(pair, pairs[pair])
        pairs[pair] += weight
        where[pair].add(index)
