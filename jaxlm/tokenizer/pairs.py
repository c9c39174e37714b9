"""Merging many pre-tokens at once: ranks of pairs in a hash table that whole arrays of pairs are looked up in.

A pair stands in one of two rows, which its hashes say, or nowhere (cuckoo hashing, Pagh and Rodler 2004): a look-up reads two
rows and compares both tokens, whatever the pairs. The look-up is written over an array namespace, `numpy` or `jax.numpy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import default_rng  # as itself: `np.random` is imported when it is named, and not in `forks.loading`

from jaxlm.tokenizer.merging import TOKEN, Pair, merge

Array = Any  # numpy.ndarray or jax.Array

NEVER = 2**31 - 1  # the rank of a pair that no merge joins
FEW = 12  # pre-tokens for which a loop in Python beats rounds over arrays
_SPARSE = 2.5  # rows for a pair at least: with fewer than 2 the search for places would not end
_ROUNDS, _DOUBLINGS = 400, 4
_MULTIPLIERS = ((0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D), (0x27D4EB2F, 0x165667B1, 0x9E3779B9))  # odd; any would do


def pair_table(product: Mapping[Pair, int]) -> np.ndarray:
    """The table of `product` (pair -> `product_of(rank, token)`), int32 [R, 4]: left, right, rank, token; left -1: empty.

    Raises ValueError where the pairs do not spread, which is no accident: their hashes are all the same.
    """
    pairs = np.array(list(product), np.int32).reshape(-1, 2)
    values = np.array(list(product.values()), np.int64)
    entries = np.stack([*pairs.T, values >> 32, values & TOKEN], axis=1).astype(np.int32)
    rows = 1 << max(4, int(np.ceil(np.log2(max(1, _SPARSE * len(entries))))))
    for _ in range(_DOUBLINGS):
        either = np.stack(_rows_of(entries[:, 0], entries[:, 1], rows, np))
        if (place := _places(either, rows)) is not None:
            table = np.full((rows, 4), -1, np.int32)
            table[:, 2] = NEVER
            table[place] = entries
            return table
        rows *= 2
    raise ValueError("merges: expected pairs whose hashes differ, found too many with the same")


def _places(either: np.ndarray, rows: int) -> np.ndarray | None:
    """A row of its own for each pair, of the two that `either` [2, n] offers; None where the search does not end."""
    count = either.shape[1]
    everyone = np.arange(count)
    choice = np.zeros(count, np.int64)
    holder = np.empty(rows, np.int64)
    for turn in range(_ROUNDS):
        place = either[choice, everyone]
        # Of several that choose a row one gets it, by a draw of this round, and the others go to their other row.
        order = default_rng(turn).permutation(count)
        holder[place[order]] = order
        lost = holder[place] != everyone
        if not lost.any():
            return place
        choice[lost] ^= 1
    return None


def _rows_of(left: Array, right: Array, rows: int, xp: Any) -> list[Array]:
    """The two rows in which a pair can stand, int32 like `left`. rows: a power of two."""
    places = []
    for a, b, c in _MULTIPLIERS:
        mixed = left.astype(np.uint32) * np.uint32(a) ^ right.astype(np.uint32) * np.uint32(b)
        mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(c)
        places.append(((mixed ^ mixed >> np.uint32(14)) & np.uint32(rows - 1)).astype(np.int32))
    return places


def look_up(table: Array, left: Array, right: Array, xp: Any = np) -> tuple[Array, Array]:
    """Rank and product of each pair of tokens, both int32 like `left`; rank NEVER where no merge joins them."""
    first, second = (xp.take(table, row, axis=0) for row in _rows_of(left, right, table.shape[0], xp))
    here = (first[..., 0] == left) & (first[..., 1] == right)
    there = (second[..., 0] == left) & (second[..., 1] == right)
    rank = xp.where(here, first[..., 2], xp.where(there, second[..., 2], np.int32(NEVER)))
    return rank, xp.where(here, first[..., 3], second[..., 3])


def merge_many(
    tokens: np.ndarray, lengths: np.ndarray, table: np.ndarray, product: Mapping[Pair, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`merging.merge` of many pre-tokens, which stand one behind the other.

    tokens: int32 [sum of lengths]. lengths: int64 [W], each at least 1. table: that of `product`. Returns the tokens that are
    left, int32, and how many of each pre-token, int64 [W]. A round merges one pair in every pre-token that has any.
    """
    counts = lengths.copy()
    words = np.arange(len(lengths))  # the pre-tokens that are not done
    done: list[tuple[np.ndarray, np.ndarray]] = []  # pre-tokens, and all their tokens
    final = np.zeros(len(tokens), bool)  # the last tokens of their pre-tokens
    final[np.cumsum(lengths) - 1] = True
    rank, made = np.full((2, len(tokens)), NEVER, np.int32)
    at = np.flatnonzero(~final)
    rank[at], made[at] = look_up(table, tokens[at], tokens[at + 1])
    while len(words):
        starts = np.cumsum(counts[words]) - counts[words]
        if len(words) <= FEW:
            for word, start in zip(words, starts, strict=True):
                merged = merge(tokens[start : start + counts[word]].tolist(), product)
                done.append((np.array([word]), np.array(merged, np.int32)))
                counts[word] = len(merged)
            break
        keys = rank.astype(np.int64) << 32 | np.arange(len(tokens))
        least = np.minimum.reduceat(keys, starts)  # the lowest rank, the leftmost of equals
        at, going = least & TOKEN, least >> 32 != NEVER
        keep = np.repeat(going, counts[words])
        done.append((words[~going], tokens[~keep]))
        at, starts, words = at[going], starts[going], words[going]
        tokens[at], final[at] = made[at], final[at + 1]
        keep[at + 1] = False
        moved = np.cumsum(keep) - 1
        tokens, rank, made, final = tokens[keep], rank[keep], made[keep], final[keep]
        counts[words] -= 1
        changed, before = moved[at], moved[at[at > starts]] - 1
        rank[changed[final[changed]]] = NEVER
        changed = np.concatenate([changed[~final[changed]], before])
        rank[changed], made[changed] = look_up(table, tokens[changed], tokens[changed + 1])
    out = np.empty(int(counts.sum()), np.int32)
    ends = np.cumsum(counts)
    for some, left in done:
        out[spread(ends[some] - counts[some], counts[some])] = left
    return out, counts


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ...: int64 [sum of counts]."""
    ends = np.cumsum(counts)
    places = np.arange(int(ends[-1]) if len(ends) else 0)
    places += np.repeat(starts - ends + counts, counts)
    return places
