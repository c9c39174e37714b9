"""Pairs of tokens with their counts: a hash table that finds them, and a heap that gives the one to merge next.

All of it lives in arrays whose addresses `state` has, itself the address of an int64 array of `FIELDS`. A pair has a row of
four int64: its key (first token << 32 | second), its count, where the list of its places begins, how long it is. A token has a
row: its first 8 bytes as a big-endian number, and where its bytes begin and how many there are. A row of the heap is a pair's
count when it was put there and the number of its row.
"""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.compiled.jit import helper, inlined
from jaxlm.tokenizer.compiled.memory import load_i32, load_i64, load_u8, load_u64, store_i32, store_i64, store_u8, store_u64

(
    SLOTS,  # int32: tokens of all words, see `learn`
    USED,  # slots in use
    BOUNDS,  # int64 [regions + 1]: the slot at which each region begins
    WEIGHTS,  # int64 [regions]: how often the words of a region occur
    REGIONS,
    LISTS,  # int32: places of pairs
    LISTS_CAPACITY,
    LISTS_USED,
    PAIRS,
    PAIRS_CAPACITY,
    PAIRS_USED,
    BUCKETS,  # int32: number of a pair's row + 1, or 0
    BUCKETS_CAPACITY,
    HEAP,
    HEAP_USED,
    TOKENS,
    TEXT,  # uint8: bytes of all tokens
    TEXT_CAPACITY,
    TEXT_USED,
    NEAR,  # int64 [tokens, 4]: what stands before and after a merge, see `learn`
    TOUCHED,  # int32 [2, tokens]
    MERGES,  # int32 [wanted, 2]: the result
    MADE,  # merges
    LEAST,  # pairs of smaller counts have no row
    BY_BYTES,  # how ties are resolved, 1: greatest bytes, 0: smallest numbers
    LONGEST,  # list
) = FIELDS = tuple(range(0, 26 * 8, 8))  # at these offsets from the address, in bytes
PAIR, TOKEN, ENTRY = 32, 24, 16  # bytes of the rows

_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@inlined
def bucket_of(key, mask):
    """Where a key is looked for first."""
    value = np.uint64(key) * _FACTOR
    return np.int64((value ^ value >> _SHIFT) * _FACTOR >> _SHIFT) & mask


@inlined
def find(state, key):
    """The address of a pair's row, or 0."""
    buckets, mask, pairs = load_i64(state + BUCKETS), load_i64(state + BUCKETS_CAPACITY) - 1, load_i64(state + PAIRS)
    at = bucket_of(key, mask)
    while True:
        number = np.int64(load_i32(buckets + 4 * at))
        if number == 0:
            return np.int64(0)
        row = pairs + PAIR * (number - 1)
        if load_i64(row) == key:
            return row
        at = (at + 1) & mask


@inlined
def hang_in(state, key, number):
    """Let `find` find row `number` under a key that it does not have."""
    buckets, mask = load_i64(state + BUCKETS), load_i64(state + BUCKETS_CAPACITY) - 1
    at = bucket_of(key, mask)
    while load_i32(buckets + 4 * at) != 0:
        at = (at + 1) & mask
    store_i32(buckets + 4 * at, np.int32(number + 1))


@inlined
def new_pair(state, key, count):
    """Append a row for a pair that has none; there is room. Returns its number."""
    number = load_i64(state + PAIRS_USED)
    row = load_i64(state + PAIRS) + PAIR * number
    store_i64(row, key)
    store_i64(row + 8, count)
    store_i64(row + 16, 0)
    store_i64(row + 24, 0)
    hang_in(state, key, number)
    store_i64(state + PAIRS_USED, number + 1)
    return number


@inlined
def clear_buckets(state):
    """Let `find` find nothing."""
    buckets = load_i64(state + BUCKETS)
    for i in range(load_i64(state + BUCKETS_CAPACITY)):
        store_i32(buckets + 4 * i, np.int32(0))


@helper
def new_token(state, number, first, second):
    """Write the row of a token that is two others together; there is room for its bytes."""
    tokens, text, begin = load_i64(state + TOKENS), load_i64(state + TEXT), load_i64(state + TEXT_USED)
    end = begin
    for part in (first, second):
        row = tokens + TOKEN * part
        source, length = text + load_i64(row + 8), load_i64(row + 16)
        for i in range(length):
            store_u8(text + end + i, load_u8(source + i))
        end += length
    prefix = np.uint64(0)
    for i in range(8):
        prefix <<= np.uint64(8)
        if begin + i < end:
            prefix |= np.uint64(load_u8(text + begin + i))
    row = tokens + TOKEN * number
    store_u64(row, prefix)
    store_i64(row + 8, begin)
    store_i64(row + 16, end - begin)
    store_i64(state + TEXT_USED, end)


@helper
def compared(state, one, other):
    """Above, below or 0, as the bytes of a token are greater than those of another, less, or the same."""
    tokens, text = load_i64(state + TOKENS), load_i64(state + TEXT)
    one, other = tokens + TOKEN * one, tokens + TOKEN * other
    if load_u64(one) != load_u64(other):
        if load_u64(one) > load_u64(other):
            return np.int64(1)
        return np.int64(-1)
    length, other_length = load_i64(one + 16), load_i64(other + 16)
    left, right = text + load_i64(one + 8), text + load_i64(other + 8)
    for i in range(min(length, other_length)):
        difference = np.int64(load_u8(left + i)) - np.int64(load_u8(right + i))
        if difference != 0:
            return difference
    return length - other_length


@inlined
def precedes(state, count, number, other_count, other):
    """Whether an entry of the heap, a count and a row, comes before another."""
    if count != other_count:
        return count > other_count
    pairs = load_i64(state + PAIRS)
    key, other_key = load_i64(pairs + PAIR * number), load_i64(pairs + PAIR * other)
    if load_i64(state + BY_BYTES) == 0:
        return key < other_key
    order = np.int64(0)
    if key >> 32 != other_key >> 32:
        order = compared(state, key >> 32, other_key >> 32)
    if order == 0:
        order = compared(state, key & 0xFFFFFFFF, other_key & 0xFFFFFFFF)
    return order > 0


@helper
def sift_down(state, at, count, number):
    """Put an entry at `at` or below it, where nothing stands at `at`."""
    heap, used = load_i64(state + HEAP), load_i64(state + HEAP_USED)
    while True:
        child = 2 * at + 1
        if child >= used:
            break
        address = heap + ENTRY * child
        if child + 1 < used and precedes(
            state, load_i64(address + ENTRY), load_i64(address + ENTRY + 8), load_i64(address), load_i64(address + 8)
        ):
            child += 1
            address += ENTRY
        if not precedes(state, load_i64(address), load_i64(address + 8), count, number):
            break
        store_i64(heap + ENTRY * at, load_i64(address))
        store_i64(heap + ENTRY * at + 8, load_i64(address + 8))
        at = child
    store_i64(heap + ENTRY * at, count)
    store_i64(heap + ENTRY * at + 8, number)


@helper
def push(state, count, number):
    """Put an entry into the heap; there is room."""
    heap, at = load_i64(state + HEAP), load_i64(state + HEAP_USED)
    store_i64(state + HEAP_USED, at + 1)
    while at > 0:
        above = (at - 1) >> 1
        address = heap + ENTRY * above
        if not precedes(state, count, number, load_i64(address), load_i64(address + 8)):
            break
        store_i64(heap + ENTRY * at, load_i64(address))
        store_i64(heap + ENTRY * at + 8, load_i64(address + 8))
        at = above
    store_i64(heap + ENTRY * at, count)
    store_i64(heap + ENTRY * at + 8, number)


@inlined
def drop_first(state):
    """Take the first entry out of the heap, which is not empty."""
    heap, used = load_i64(state + HEAP), load_i64(state + HEAP_USED) - 1
    store_i64(state + HEAP_USED, used)
    last = heap + ENTRY * used
    if used > 0:
        sift_down(state, np.int64(0), load_i64(last), load_i64(last + 8))


@inlined
def settle_first(state):
    """Bring the first entry of the heap up to date, which only lowers it, until it is: the pair to merge next.

    Returns whether there is one of at least the least count.
    """
    heap, pairs, least = load_i64(state + HEAP), load_i64(state + PAIRS), load_i64(state + LEAST)
    while load_i64(state + HEAP_USED) > 0:
        number = load_i64(heap + 8)
        count = load_i64(pairs + PAIR * number + 8)
        if count == load_i64(heap):
            return True
        if count < least:
            drop_first(state)
        else:
            sift_down(state, np.int64(0), count, number)
    return False
