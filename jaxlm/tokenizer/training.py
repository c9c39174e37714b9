"""Learning the merges: count pre-tokens, then merge the most frequent pair of neighbours, again and again.

The result is a function of the multiset of pre-tokens: the order and the cutting of the texts do not matter.
Source: Sennrich et al. 2016, algorithm 1; over bytes, Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from jaxlm.contract import InputError
from jaxlm.tokenizer.merging import Pair
from jaxlm.tokenizer.pretoken import last_cut, pieces, special_pattern, split

Ties = Literal["bytes", "ids"]
SIZE = 1 << 16  # characters of text that are split at once


@dataclass
class Corpus:
    """What training needs to know of the texts, and what its record tells of them."""

    counts: Counter[bytes] = field(default_factory=Counter)  # pre-token -> how often it occurs
    documents: int = 0  # texts taken, the last perhaps in part
    bytes: int = 0  # of UTF-8 in them


def count_pretokens(texts: Iterable[str], *, pattern: str, special_tokens: tuple[str, ...], max_bytes: int = 0) -> Corpus:
    """How often each pre-token occurs. Special tokens in the texts separate, and are not counted.

    max_bytes: stop after so many bytes of UTF-8, at the last place before where a text can be cut; 0: take all.
    Raises TypeError where a text is no str, InputError where it has a lone surrogate.
    """
    specials = special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    corpus = Corpus()
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts: expected an iterable of str, found {type(text).__name__}")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"expected Unicode text, found the lone surrogate U+{ord(text[error.start]):04X} at character {error.start} of "
                f"text {corpus.documents}, which no UTF-8 stands for; read the text with errors='replace'"
            ) from None
        room = max_bytes - corpus.bytes if max_bytes else len(raw)
        if len(raw) > room:
            fits = len(raw[:room].decode(errors="ignore"))
            text = text[: last_cut(text, fits + 1, specials) or fits]
        for part in specials.split(text) if specials else (text,):
            for piece in pieces((part,), (), size=SIZE):
                counts.update(split(piece, pattern))
        corpus.documents += 1
        corpus.bytes += len(text.encode())
        if max_bytes and len(raw) >= room:
            break
    corpus.counts = Counter({pretoken.encode(): count for pretoken, count in counts.items()})
    return corpus


def learn_merges(counts: Counter[bytes], wanted: int, *, ties: Ties = "bytes") -> list[tuple[bytes, bytes]]:
    """The first `wanted` merges, or as many as the counts support. counts: pre-token -> how often it occurs.

    The most frequent pair of neighbours is merged; ties: of equally frequent ones "bytes" takes the pair of byte strings that
    is greatest, "ids" the pair of ids that is smallest. In "aaa" the pair (a, a) counts twice, and is merged once, on the left.
    """
    text = [bytes([i]) for i in range(256)]
    words = [list(word) for word in counts]
    weights = list(counts.values())
    pairs: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # words that have the pair, or once had it
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            where[pair].add(index)

    # The heap gives its smallest entry first, and a count in it may be out of date: it counts if it is the pair's count now.
    descending = [_descending(token) for token in text]
    keys: list[str] | range = descending if ties == "bytes" else range(256 + wanted)
    heap = [(-count, keys[a], keys[b], (a, b)) for (a, b), count in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    while heap and len(merges) < wanted:
        minus_count, _, _, best = heapq.heappop(heap)
        if -minus_count != pairs.get(best, 0):
            continue
        new = len(text)
        merges.append((text[best[0]], text[best[1]]))
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
    return merges


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
