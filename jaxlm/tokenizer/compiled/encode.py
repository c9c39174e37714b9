"""Text to ids: pre-tokens are scanned, looked up among those seen before, and merged where they are new.

The cache of pre-tokens is a table of rows of 32 bytes, two to a cache line:

    0..15   the pre-token, if it has at most 16 bytes (filled with zeros); else two hashes of it
    16..19  its length in bytes in the lower 8 bits (0: empty row), above them how many ids it has
    20..31  the ids, if they are at most 3 and the pre-token at most 16 bytes; else 20..23 hold its place in the arena

The arena holds, in int32 words, the bytes of pre-tokens longer than 16, and ids. A pre-token is looked for in the rows of one
window; it is compared whole, never by hash alone, so that no input can make another's ids come out. Where the window is full,
one of its rows gives way; where the arena is full, the cache is emptied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined
from jaxlm.tokenizer.compiled.memory import (
    load_i32,
    load_i64,
    load_u8,
    load_u64,
    prefetch,
    store_i32,
    store_i64,
    store_u8,
    store_u64,
)
from jaxlm.tokenizer.compiled.merge import SHORT, SHORT_SCRATCH, PairTable, merge_long, merge_short
from jaxlm.tokenizer.compiled.scan import KINDS, PADDING, pretoken_end, table
from jaxlm.tokenizer.vocabulary import Vocabulary

ROW = 32
WINDOW = 8  # rows in which a pre-token is looked for
INLINE = 16  # bytes of a pre-token that a row holds
REMEMBERED = SHORT  # bytes up to which pre-tokens are remembered: longer ones are rare, and merging them may fail
ROWS = 1 << 18  # 8 MB
IDLE = 8  # workers that wait for a next thread, with a cache of 16 MB each
LIMIT_BYTES = 1 << 31  # of text at once: places are int32
ARENA = 1 << 21  # words; 8 MB
BATCH, ENTRY = 64, 32  # pre-tokens in a batch; bytes of each: its end, its 16 bytes or two hashes, the hash of them

# What the compiled functions need to know, at these offsets from the address of a worker's state, int64 each.
TABLE, KIND, PAIRS, SHIFT, MASK, IDS, CACHE, ROW_MASK, WORDS, USED, LIMIT, FIRST_BYTES, SCRATCH, BATCHED, FAILED = range(
    0, 120, 8
)

_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_32 = np.uint64(32)
_PADDING = b"\xff" * PADDING


@inlined
def _mixed(low, high):
    """A hash of 128 bits."""
    hashed = (low ^ (high * _B)) * _A
    return (hashed ^ (hashed >> _32)) * _B


@inlined
def _hashes(text, at, length):
    """Two hashes of more than 16 bytes, which are followed by padding or text."""
    one, two = np.uint64(length), np.uint64(length)
    done = np.int64(0)
    while done + 8 <= length:
        word = load_u64(text + at + done)
        one = (one ^ word) * _A
        one ^= one >> _32
        two = (two + word) * _B
        two ^= two >> _32
        done += 8
    if done < length:
        word = load_u64(text + at + length - 8)
        one = (one ^ word) * _A
        two = (two + word) * _B
    return one ^ (one >> _32), two ^ (two >> _32)


@inlined
def _equal(text, words, length):
    """Whether `length` bytes are the same in two places."""
    for k in range(length):
        if load_u8(text + k) != load_u8(words + k):
            return False
    return True


@helper
def _merged(state, text, length, out):
    """Ids of a pre-token, by the merges alone, written to `out`; returns how many."""
    pairs, shift, mask, ids = load_i64(state + PAIRS), load_i64(state + SHIFT), load_i64(state + MASK), load_i64(state + IDS)
    if length <= SHORT:
        count = merge_short(pairs, shift, mask, text, length, load_i64(state + SCRATCH), out)
    else:
        count = merge_long(pairs, shift, mask, text, length, out)
        if count < 0:
            store_i64(state + FAILED, 1)
            return np.int64(0)
    for k in range(count):
        store_i32(out + 4 * k, load_i32(ids + 4 * np.int64(load_i32(out + 4 * k))))
    return count


@helper
def _learned(state, text, length, out, row, low, high):
    """The same, and kept in `row`, whose pre-token is `low`, `high`."""
    count = _merged(state, text, length, out)
    used = load_i64(state + USED)
    words = load_i64(state + WORDS)
    needed = np.int64(0)
    if length > INLINE:
        needed = ((length + 3) >> 2) + count
    elif count > 3:
        needed = count
    if used + needed > load_i64(state + LIMIT):
        cache, rows = load_i64(state + CACHE), load_i64(state + ROW_MASK) + 1
        for k in range(rows * (ROW // 8)):
            store_i64(cache + 8 * k, 0)
        used = np.int64(0)
    store_u64(row, low)
    store_u64(row + 8, high)
    store_i32(row + 16, np.int32(length | count << 8))
    place = words + 4 * used
    if needed == 0:
        for k in range(count):
            store_i32(row + 20 + 4 * k, load_i32(out + 4 * k))
    else:
        store_i32(row + 20, np.int32(used))
        if length > INLINE:
            for k in range(length):
                store_u8(place + k, load_u8(text + k))
            place += (length + 3) >> 2 << 2
        for k in range(count):
            store_i32(place + 4 * k, load_i32(out + 4 * k))
    store_i64(state + USED, used + needed)
    return count


@inlined
def _known(state, cache, row_mask, words, text, length, low, high, hashed, out):
    """Ids of the pre-token of `length` <= REMEMBERED bytes at `text`, written to `out`; returns how many."""
    first = np.int64(hashed >> _32)
    free = np.int64(-1)
    for k in range(WINDOW):
        row = cache + ROW * ((first + k) & row_mask)
        about = np.int64(load_i32(row + 16))
        if about == 0:
            free = row
            break
        if load_u64(row) == low and load_u64(row + 8) == high and about & 0xFF == length:
            count = about >> 8
            if length <= INLINE and count <= 3:
                store_u64(out, load_u64(row + 20))
                store_i32(out + 8, load_i32(row + 28))
                return count
            place = words + 4 * np.int64(load_i32(row + 20))
            if length > INLINE:
                if not _equal(text, place, length):
                    continue
                place += (length + 3) >> 2 << 2
            for j in range(count):
                store_i32(out + 4 * j, load_i32(place + 4 * j))
            return count
    if free < 0:
        free = cache + ROW * ((first + np.int64((hashed >> np.uint64(20)) & np.uint64(WINDOW - 1))) & row_mask)
    return _learned(state, text, length, out, free, low, high)


@inlined
def _encode_text(state, text, length, out):
    """Ids of one text, written to `out`; returns how many.

    Pre-tokens go in batches: while one is scanned, the rows of those before are on their way.
    """
    classes, kind, first_bytes = load_i64(state + TABLE), load_i64(state + KIND), load_i64(state + FIRST_BYTES)
    cache, row_mask, words = load_i64(state + CACHE), load_i64(state + ROW_MASK), load_i64(state + WORDS)
    batch = load_i64(state + BATCHED)
    at, count = np.int64(0), np.int64(0)
    while at < length:
        begin, size = at, np.int64(0)
        while size < BATCH and at < length:
            end = pretoken_end(kind, text, classes, at)
            entry = batch + ENTRY * size
            store_i64(entry, end)
            if end - at <= REMEMBERED:
                if end - at > INLINE:
                    low, high = _hashes(text, at, end - at)
                elif end - at > 8:
                    low = load_u64(text + at)
                    high = load_u64(text + at + 8) & load_u64(first_bytes + 8 * (end - at - 8))
                else:
                    low, high = load_u64(text + at) & load_u64(first_bytes + 8 * (end - at)), np.uint64(0)
                hashed = _mixed(low, high)
                prefetch(cache + ROW * (np.int64(hashed >> _32) & row_mask))
                store_u64(entry + 8, low)
                store_u64(entry + 16, high)
                store_u64(entry + 24, hashed)
            at = end
            size += 1
        for k in range(size):
            entry = batch + ENTRY * k
            end = load_i64(entry)
            if end - begin <= REMEMBERED:
                low, high, hashed = load_u64(entry + 8), load_u64(entry + 16), load_u64(entry + 24)
                count += _known(state, cache, row_mask, words, text + begin, end - begin, low, high, hashed, out + 4 * count)
            else:
                count += _merged(state, text + begin, end - begin, out + 4 * count)
            begin = end
    return count


@compiled
def encode_texts(state, text, ends, count, out):
    """Write the ids of `count` texts as int32 to `out`, one after another (room for 4 more than there are bytes).

    text: UTF-8, each followed by PADDING bytes 0xFF. ends: int64 [count], where each ends before its padding; is overwritten by
    where its ids end.
    """
    begin, written = np.int64(0), np.int64(0)
    for k in range(count):
        end = load_i64(ends + 8 * k)
        written += _encode_text(state, text + begin, end - begin, out + 4 * written)
        store_i64(ends + 8 * k, written)
        begin = end + PADDING
    return written


class Tables:
    """What the workers of one tokenizer share and only read."""

    def __init__(self, vocabulary: Vocabulary, pattern: str):
        self.kind = KINDS[pattern]
        self.classes = table()
        self.pairs = PairTable(vocabulary.product)
        self.ids = np.ascontiguousarray(vocabulary.ids)
        masks = [(1 << 8 * length) - 1 for length in range(9)]
        self.first_bytes = np.array(masks, np.uint64)


class Worker:
    """A cache of pre-tokens, and the state that goes with it. One thread at a time may use it."""

    def __init__(self, tables: Tables, *, rows: int = ROWS, arena: int = ARENA):
        self._tables = tables
        self._cache = np.zeros(rows * ROW, np.uint8)
        self._words = np.empty(arena, np.int32)
        self._scratch = np.empty(SHORT_SCRATCH, np.uint8)
        self._batch = np.empty(BATCH * ENTRY, np.uint8)
        pairs, address = tables.pairs, lambda array: array.ctypes.data
        self._state = np.array(
            [
                address(tables.classes), tables.kind, pairs.address, pairs.shift, pairs.mask, address(tables.ids),
                address(self._cache), rows - 1, address(self._words), 0, arena, address(tables.first_bytes),
                address(self._scratch), address(self._batch), 0,
            ],
            np.int64,
        )  # fmt: skip
        self._address = address(self._state)

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text (UTF-8 without special tokens, together below LIMIT_BYTES), int32; they share one array."""
        padded = np.frombuffer(b"".join([part for text in texts for part in (text, _PADDING)]), np.uint8)
        ends = np.cumsum([len(text) + PADDING for text in texts], dtype=np.int64) - PADDING
        room = np.empty(len(padded) + 4, np.int32)
        arguments = (self._address, padded.ctypes.data, ends.ctypes.data, len(texts), room.ctypes.data)
        ids = room[: encode_texts(*arguments)].copy()
        if self._state[FAILED // 8]:
            self._state[FAILED // 8] = 0
            raise MemoryError(f"expected memory for a pre-token of up to {max(map(len, texts))} bytes, found none")
        return np.split(ids, ends[:-1]) if len(texts) > 1 else [ids]


class Engine:
    """A tokenizer's encoder: workers that are free wait for the next thread. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, pattern: str):
        self.tables = Tables(vocabulary, pattern)
        self._free: list[Worker] = []

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text (UTF-8 without special tokens), int32. Raises ValueError for 2 GB or more."""
        if sum(map(len, texts)) >= LIMIT_BYTES:
            raise ValueError(f"expected less than {LIMIT_BYTES} bytes of text at once, found more; use encode_iterable")
        try:
            worker = self._free.pop()
        except IndexError:
            worker = Worker(self.tables)
        try:
            return worker.encode(texts)
        finally:
            if len(self._free) < IDLE:
                self._free.append(worker)
