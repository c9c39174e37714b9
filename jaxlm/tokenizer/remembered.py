"""Pre-tokens whose ids are known, in a table that whole arrays of pre-tokens are looked up in.

Every byte of a pre-token is compared: hashes only say where to look, and who chooses texts so that hashes collide makes the
table forgetful, never wrong.
"""

from __future__ import annotations

import numpy as np

SHORT = 16  # bytes of a pre-token that fit a row of the table; longer ones are for a dict
_REACH = 12  # rows in which a pre-token is looked for, from that of its hash on
_MIX = [np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)]  # odd
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


class Remembered:
    """At most `most` pre-tokens of up to `SHORT` bytes, each with a number, which is not 0. For one thread at a time."""

    def __init__(self, most: int):
        self.most = most
        self._empty(min(10, most.bit_length()))

    def _empty(self, bits: int) -> None:
        self.size, self._bits = 0, bits
        self._rows = np.zeros(((1 << bits) + _REACH, 4), np.uint64)  # 8 bytes, 8 bytes, length (0: empty), number

    def numbers(self, keys: np.ndarray) -> np.ndarray:
        """The number of each of `keys` (see `keys_of`), int64 [P]; 0 where it is not remembered."""
        row = self._row(keys)
        out = np.zeros(len(keys), np.int64)
        at: np.ndarray | slice = slice(None)  # the keys that are still looked for
        for step in range(_REACH):
            found = np.take(self._rows, row + step, axis=0)
            hit = _equal(found, keys)
            out[at] = np.where(hit, found[:, 3].view(np.int64), 0)
            more = np.flatnonzero(~hit & (found[:, 2] != 0))
            if not len(more):
                break
            at, row, keys = (more if isinstance(at, slice) else at[more]), row[more], keys[more]
        return out

    def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        """Remember different keys, none of them remembered yet: as many as there is room for."""
        keys, numbers = keys[: self.most - self.size], numbers[: self.most - self.size]
        new = np.concatenate([keys, numbers.astype(np.uint64)[:, None]], axis=1)
        if (needed := 2 * (self.size + len(new))) > 1 << self._bits:  # kept half empty, and then twice as large as it must be
            new = np.concatenate([self._rows[self._rows[:, 2] != 0], new])
            self._empty(min(needed.bit_length() + 1, max(needed, 2 * self.most - 1).bit_length()))
        row = self._row(new)
        for _ in range(_REACH):
            free = self._rows[row, 2] == 0
            self._rows[row[free]] = new[free]  # of several that want a row the last one gets it
            placed = _equal(self._rows[row], new)
            self.size += int(placed.sum())
            row, new = row[~placed] + 1, new[~placed]

    def _row(self, keys: np.ndarray) -> np.ndarray:
        return (hashes(keys) >> np.uint64(64 - self._bits)).astype(np.int64)


def keys_of(raw: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A key for each stretch of `raw`, of 1 to `SHORT` bytes: its bytes in two words, and its length; uint64 [P, 3]."""
    start = int(starts.min(initial=len(raw)))
    padded = raw[start : int(starts.max(initial=0)) + SHORT] + bytes(SHORT)  # no more than is needed
    words = np.ascontiguousarray(np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,)))
    starts = starts - start
    keys = np.empty((len(starts), 3), np.uint64)
    keys[:, 0] = np.take(words, starts) & np.take(_MASKS, np.minimum(lengths, 8))
    keys[:, 1] = np.take(words, starts + 8) & np.take(_MASKS, np.maximum(lengths - 8, 0))
    keys[:, 2] = lengths
    return keys


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different key stands first, and for each key which of them it is; both int64."""
    _, first, which = np.unique(hashes(keys), return_index=True, return_inverse=True)
    if not (keys[first[which]] == keys).all():  # two keys with one hash
        _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first, which


def hashes(keys: np.ndarray) -> np.ndarray:
    """A hash of each key, uint64 [P], whose upper bits say the row."""
    mixed = keys[:, 0] * _MIX[0] ^ keys[:, 1] * _MIX[1] ^ keys[:, 2] * _MIX[2]
    return (mixed ^ mixed >> np.uint64(32)) * _MIX[3]


def _equal(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return (rows[:, 0] == keys[:, 0]) & (rows[:, 1] == keys[:, 1]) & (rows[:, 2] == keys[:, 2])
