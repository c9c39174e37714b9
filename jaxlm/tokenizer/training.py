"""Learning the merges: count pre-tokens, then merge the most frequent pair of neighbours, again and again.

The result is a function of the multiset of pre-tokens: the order and the cutting of the texts do not matter.
Source: Sennrich et al. 2016, algorithm 1; over bytes, Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal

from jaxlm.contract import InputError
from jaxlm.tokenizer.merging import Pair
from jaxlm.tokenizer.pretoken import compiled, pieces, special_pattern

Ties = Literal["bytes", "ids"]
SIZE = 1 << 16  # characters of text that are split at once


def count_pretokens(texts: Iterable[str], *, pattern: str, special_tokens: tuple[str, ...], max_bytes: int = 0) -> Counter[bytes]:
    """How often each pre-token occurs. Special tokens in the texts separate, and are not counted.

    max_bytes: stop before the text that would exceed so many bytes of UTF-8 (the first text is always taken); 0: take all.
    """
    find, specials = compiled(pattern).findall, special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    taken = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts: expected an iterable of str, found {type(text).__name__}")
        taken += len(text.encode())
        if max_bytes and taken > max_bytes and counts:
            break
        for part in specials.split(text) if specials else (text,):
            for piece in pieces((part,), (), size=SIZE):
                counts.update(find(piece))
    return Counter({pretoken.encode(): count for pretoken, count in counts.items()})


class _Candidate:
    """A pair in the heap: the larger count first, then the tie rule."""

    __slots__ = ("count", "key", "pair")

    def __init__(self, count: int, key: tuple, pair: Pair):
        self.count, self.key, self.pair = count, key, pair

    def __lt__(self, other: _Candidate) -> bool:
        if self.count != other.count:
            return self.count > other.count
        return self.key > other.key


def learn_merges(counts: Counter[bytes], wanted: int, *, ties: Ties = "bytes") -> list[tuple[bytes, bytes]]:
    """The first `wanted` merges. ties: between equally frequent pairs, "bytes" takes the one whose pair of byte strings is
    greatest, "ids" the one whose pair of ids is smallest.

    Counts of a pair are those of neighbours; in "aaa" the pair (a, a) counts twice, and one merge of it is made.
    Raises InputError where the counts support fewer merges.
    """
    text = [bytes([i]) for i in range(256)]
    words = [list(word) for word in counts]
    weights = list(counts.values())
    pairs: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += weights[index]
            where[pair].add(index)

    def candidate(pair: Pair) -> _Candidate:
        a, b = pair
        return _Candidate(pairs[pair], (text[a], text[b]) if ties == "bytes" else (-a, -b), pair)

    heap = [candidate(pair) for pair in pairs]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < wanted:
        while heap and heap[0].count != pairs.get(heap[0].pair, 0):
            heapq.heappop(heap)  # its count has changed since; a newer entry says how
        if not heap:
            raise InputError(
                f"--tokenizer.vocab-size: expected text that supports {wanted} merges, found that it supports {len(merges)}; "
                f"train on more text, or ask for {wanted - len(merges)} tokens fewer"
            )
        best = heapq.heappop(heap).pair
        new = len(text)
        merges.append((text[best[0]], text[best[1]]))
        text.append(text[best[0]] + text[best[1]])
        changed: dict[Pair, int] = {}  # counts before this merge
        for index in where.pop(best):
            _replace(words[index], best, new, weights[index], index, pairs, where, changed)
        for pair, count in changed.items():
            if pairs[pair] == 0:
                del pairs[pair]
                where.pop(pair, None)
            elif pairs[pair] != count:
                heapq.heappush(heap, candidate(pair))
    return merges


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
    before = list(zip(word, word[1:], strict=False))
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
    for pair in zip(merged, merged[1:], strict=False):
        changed.setdefault(pair, pairs[pair])
        pairs[pair] += weight
        where[pair].add(index)
