"""Counting pre-tokens in a hash table of their exact bytes.

A row of the table has four int64: two of key, the length (0: the row is free) and the count. Pre-tokens of at most 16 bytes are
their own key; of longer ones it is a hash and the place of their bytes in the `long` bytes, which are compared. `state` is the
address of an int64 array with what follows, so that a kernel goes on where it had to stop for want of room.
"""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined
from jaxlm.tokenizer.compiled.memory import load_i64, load_u8, load_u64, store_i64, store_u8, store_u64
from jaxlm.tokenizer.compiled.scan import KINDS, PADDING, pretoken_end, table
from jaxlm.tokenizer.counts import Counts

ROWS, CAPACITY, USED, LONG, LONG_CAPACITY, LONG_USED = (8 * i for i in range(6))
ROW, SHORT = 32, 16  # bytes
SEPARATOR = 0xFF  # between the texts of a block; no byte of UTF-8

_A, _B, _C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


@inlined
def mixed(first, second, length):
    """A hash of two words and a length."""
    value = (first ^ np.uint64(length) * _B) * _A
    value ^= value >> _SHIFT
    value = (value ^ second) * _C
    value ^= value >> _SHIFT
    return value * _A


@inlined
def first_bytes(text, length):
    """The first `length` (0..8) bytes at `text` as a word; up to 8 bytes are read."""
    if length >= 8:
        return load_u64(text)
    if length <= 0:
        return np.uint64(0)
    return load_u64(text) & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))


@helper
def long_hash(text, length):
    """A hash of a pre-token of more than `SHORT` bytes."""
    value = np.uint64(length)
    at = np.int64(0)
    while at < length:
        value = mixed(value, first_bytes(text + at, length - at), 8)
        at += 8
    return value


@inlined
def same(one, other, length):
    """Whether the `length` bytes at two addresses are equal."""
    at = np.int64(0)
    while at < length:
        if load_u8(one + at) != load_u8(other + at):
            return False
        at += 1
    return True


@inlined
def add(state, text, length, count):
    """Count a pre-token `count` times. False where there is no room for a new one, and nothing is done."""
    rows, long = load_i64(state + ROWS), load_i64(state + LONG)
    mask = load_i64(state + CAPACITY) - 1
    if length <= SHORT:
        first = first_bytes(text, length)
        second = first_bytes(text + 8, length - 8)
        at = np.int64(mixed(first, second, length) >> _SHIFT) & mask
        while True:
            row = rows + ROW * at
            if load_u64(row) == first and load_u64(row + 8) == second and load_i64(row + 16) == length:
                store_i64(row + 24, load_i64(row + 24) + count)
                return True
            if load_i64(row + 16) == 0:
                break
            at = (at + 1) & mask
    else:
        first = long_hash(text, length)
        at = np.int64(first >> _SHIFT) & mask
        while True:
            row = rows + ROW * at
            found = load_i64(row + 16)
            if found == 0:
                break
            if found == length and load_u64(row) == first and same(long + load_i64(row + 8), text, length):
                store_i64(row + 24, load_i64(row + 24) + count)
                return True
            at = (at + 1) & mask
        place = load_i64(state + LONG_USED)
        if place + length > load_i64(state + LONG_CAPACITY):
            return False
        second = np.uint64(place)
    used = load_i64(state + USED)
    if 4 * (used + 1) > 3 * (mask + 1):
        return False
    if length > SHORT:
        place = np.int64(second)
        for i in range(length):
            store_u8(long + place + i, load_u8(text + i))
        store_i64(state + LONG_USED, place + length)
    store_u64(row, first)
    store_u64(row + 8, second)
    store_i64(row + 16, length)
    store_i64(row + 24, count)
    store_i64(state + USED, used + 1)
    return True


@compiled
def count_block(state, kind, text, begin, length, classes):
    """Count the pre-tokens between separators, from `begin` on. Returns where it stopped: before `length` for want of room.

    text: valid UTF-8 and separators, followed by `PADDING` bytes 0xFF. kind, classes: `KINDS` and `table` of scanning.
    """
    at = begin
    while at < length:
        if load_u8(text + at) == SEPARATOR:
            at += 1
            continue
        end = pretoken_end(kind, text, classes, at)
        if not add(state, text + at, end - at, 1):
            return at
        at = end
    return length


@compiled
def rehash(rows, capacity, state):
    """Move all rows of a table into the empty, larger one of `state`, which has its `long` bytes. Returns how many."""
    target, mask = load_i64(state + ROWS), load_i64(state + CAPACITY) - 1
    moved = np.int64(0)
    for i in range(capacity):
        row = rows + ROW * i
        length = load_i64(row + 16)
        if length == 0:
            continue
        first = load_u64(row)
        if length <= SHORT:
            first = mixed(first, load_u64(row + 8), length)
        at = np.int64(first >> _SHIFT) & mask
        while load_i64(target + ROW * at + 16) != 0:
            at = (at + 1) & mask
        for word in range(0, ROW, 8):
            store_i64(target + ROW * at + word, load_i64(row + word))
        moved += 1
    return moved


@compiled
def add_rows(state, rows, begin, capacity, long):
    """Add the rows of another table, from row `begin` on. Returns where it stopped: before `capacity` for want of room."""
    for i in range(begin, capacity):
        row = rows + ROW * i
        length = load_i64(row + 16)
        if length == 0:
            continue
        text = row  # the key of a short one is its bytes, and 16 bytes can be read there
        if length > SHORT:
            text = long + load_i64(row + 8)
        if not add(state, text, length, load_i64(row + 24)):
            return i
    return capacity


@compiled
def take_out(state, text, ends, counts):
    """Write the bytes, ends and counts of all pre-tokens. Returns how many bytes there are; text 0: only these."""
    rows, long = load_i64(state + ROWS), load_i64(state + LONG)
    size, number = np.int64(0), np.int64(0)
    for i in range(load_i64(state + CAPACITY)):
        row = rows + ROW * i
        length = load_i64(row + 16)
        if length == 0:
            continue
        if text != 0:
            source = row
            if length > SHORT:
                source = long + load_i64(row + 8)
            for j in range(length):
                store_u8(text + size + j, load_u8(source + j))
            store_i64(ends + 8 * number, size + length)
            store_i64(counts + 8 * number, load_i64(row + 24))
        size += length
        number += 1
    return size


class CountTable:
    """A table that grows. One thread may use it at a time."""

    def __init__(self, pattern: str, *, rows: int = 1 << 12, long: int = 1 << 12):
        self._kind, self._classes = KINDS[pattern], table()
        self._rows = np.zeros((rows, ROW // 8), np.int64)
        self._long = np.empty(long + 8, np.uint8)  # words of 8 bytes are read at its end
        self._state = np.zeros(6, np.int64)
        self._point()

    def _point(self) -> None:
        self._state[[0, 1, 3, 4]] = self._rows.ctypes.data, len(self._rows), self._long.ctypes.data, len(self._long) - 8

    def _grow(self, length: int) -> None:
        """Make room for a pre-token of `length` bytes."""
        if 4 * (len(self) + 1) > 3 * len(self._rows):
            before = self._rows
            self._rows = np.zeros((2 * len(before), ROW // 8), np.int64)
            self._point()
            rehash(before.ctypes.data, len(before), self._state.ctypes.data)
        used = int(self._state[5])
        if used + length > len(self._long) - 8:
            longer = np.empty(2 * used + length + 8, np.uint8)
            longer[:used] = self._long[:used]
            self._long = longer
            self._point()

    def add(self, texts: list[bytes]) -> None:
        """Count the pre-tokens of texts in valid UTF-8; a byte 0xFF in them separates two."""
        text = np.frombuffer(b"\xff".join([*texts, b"\xff" * PADDING]), np.uint8)
        at, length = 0, len(text) - PADDING
        while True:
            at = count_block(self._state.ctypes.data, self._kind, text.ctypes.data, at, length, self._classes.ctypes.data)
            if at == length:
                return
            self._grow(length - at)

    def merge(self, other: CountTable) -> None:
        """Add the counts of another table."""
        at, rows, long = 0, other._rows, other._long
        while True:
            at = add_rows(self._state.ctypes.data, rows.ctypes.data, at, len(rows), long.ctypes.data)
            if at == len(rows):
                return
            self._grow(int(rows[at, 2]))

    def __len__(self) -> int:
        """Different pre-tokens."""
        return int(self._state[2])

    def counts(self) -> Counts:
        """What has been counted."""
        size = take_out(self._state.ctypes.data, 0, 0, 0)
        found = Counts(np.empty(size, np.uint8), np.empty(len(self), np.int64), np.empty(len(self), np.int64))
        arrays = (found.text, found.ends, found.counts)
        take_out(self._state.ctypes.data, *(array.ctypes.data for array in arrays))
        return found
