"""Applying the merges to one pre-token, as `merging.merge` does: the pair of lowest rank, the leftmost of equals.

Products (`merging.product_of`) stand in a hash table of pairs; `PairTable` builds it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined
from jaxlm.tokenizer.compiled.memory import free, load_i32, load_i64, load_u8, malloc, store_i32, store_i64
from jaxlm.tokenizer.merging import NONE, Pair

EMPTY = -1  # no pair: tokens are below 2**31
SHORT = 128  # bytes up to which all pairs are scanned, without more memory; beyond them a heap is needed
SHORT_SCRATCH = 16 * SHORT  # bytes that `merge_short` needs

_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, odd: multiplicative hashing (Knuth, TAOCP 3, 6.4)


@inlined
def product_at(pairs, shift, mask, first, second):
    """The product of two tokens, NONE where they have none. pairs: rows of (pair, product), int64, mask + 1 of them."""
    pair = first << 32 | second
    slot = ((pair * _MULTIPLIER) >> shift) & mask
    while True:
        found = load_i64(pairs + 16 * slot)
        if found == pair:
            return load_i64(pairs + 16 * slot + 8)
        if found == EMPTY:
            return np.int64(NONE)
        slot = (slot + 1) & mask


@compiled
def fill(pairs, shift, mask, found, count):
    """Enter `count` rows of (pair, product) at `found` into the empty table `pairs`."""
    for row in range(count):
        pair = load_i64(found + 16 * row)
        slot = ((pair * _MULTIPLIER) >> shift) & mask
        while load_i64(pairs + 16 * slot) != EMPTY:
            slot = (slot + 1) & mask
        store_i64(pairs + 16 * slot, pair)
        store_i64(pairs + 16 * slot + 8, load_i64(found + 16 * row + 8))
    return count


class PairTable:
    """Products by pair: open addressing, at most half full. `address`, `shift` and `mask` are what `product_at` takes."""

    def __init__(self, product: Mapping[Pair, int]):
        bits = max(4, (2 * len(product)).bit_length())
        self.shift, self.mask = 64 - bits, (1 << bits) - 1
        self._rows = np.full((1 << bits, 2), EMPTY, np.int64)
        self.address = self._rows.ctypes.data
        pairs = np.array(list(product), np.int64).reshape(-1, 2)
        found = np.stack([pairs[:, 0] << 32 | pairs[:, 1], np.fromiter(product.values(), np.int64, len(product))], axis=1)
        fill(self.address, self.shift, self.mask, found.ctypes.data, len(found))


@inlined
def merge_short(pairs, shift, mask, text, length, scratch, out):
    """Merge `length` <= SHORT bytes at `text`; write tokens as int32 to `out`, return how many. scratch: of SHORT_SCRATCH."""
    tokens, products = scratch, scratch + 8 * SHORT
    before = np.int64(load_u8(text))
    store_i64(tokens, before)
    for k in range(1, length):
        after = np.int64(load_u8(text + k))
        store_i64(tokens + 8 * k, after)
        store_i64(products + 8 * k - 8, product_at(pairs, shift, mask, before, after))
        before = after
    count = length
    while count > 1:
        best, at = np.int64(NONE), np.int64(0)
        for k in range(count - 1):
            value = load_i64(products + 8 * k)
            if value < best:
                best, at = value, np.int64(k)
        if best == NONE:
            break
        made = best & 0xFFFFFFFF
        store_i64(tokens + 8 * at, made)
        count -= 1
        for k in range(at + 1, count):
            store_i64(tokens + 8 * k, load_i64(tokens + 8 * k + 8))
            store_i64(products + 8 * k - 8, load_i64(products + 8 * k))
        if at > 0:
            store_i64(products + 8 * at - 8, product_at(pairs, shift, mask, load_i64(tokens + 8 * at - 8), made))
        if at + 1 < count:
            store_i64(products + 8 * at, product_at(pairs, shift, mask, made, load_i64(tokens + 8 * at + 8)))
    for k in range(count):
        store_i32(out + 4 * k, np.int32(load_i64(tokens + 8 * k)))
    return count


@inlined
def _sift_down(heap, size, key):
    """Put `key` where the smallest key was, and restore the heap."""
    at = np.int64(0)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        smaller = load_i64(heap + 8 * child)
        if child + 1 < size:
            other = load_i64(heap + 8 * child + 8)
            if other < smaller:
                child, smaller = child + 1, other
        if key <= smaller:
            break
        store_i64(heap + 8 * at, smaller)
        at = child
    store_i64(heap + 8 * at, key)


@inlined
def _push(heap, size, key):
    at = size
    while at > 0:
        above = (at - 1) >> 1
        parent = load_i64(heap + 8 * above)
        if parent <= key:
            break
        store_i64(heap + 8 * at, parent)
        at = above
    store_i64(heap + 8 * at, key)


@helper
def merge_long(pairs, shift, mask, text, length, out):
    """The same for any length in O(n log n): a linked list of tokens, and a heap of rank and place of each pair.

    Written over `out` (int32, room for `length`); -1 where memory runs out. A text is below 2**31 bytes, and so are places.
    """
    room = malloc(24 * length + 32)
    if room == 0:
        return np.int64(-1)
    heap, after, ahead = room, room + 16 * length + 16, room + 20 * length + 24
    size = np.int64(0)
    for k in range(length):
        store_i32(out + 4 * k, np.int32(load_u8(text + k)))
        store_i32(after + 4 * k, np.int32(k + 1))
        store_i32(ahead + 4 * k, np.int32(k - 1))
    for k in range(length - 1):
        product = product_at(pairs, shift, mask, np.int64(load_u8(text + k)), np.int64(load_u8(text + k + 1)))
        if product != NONE:
            _push(heap, size, (product >> 32) << 32 | k)
            size += 1
    while size > 0:
        key = load_i64(heap)
        size -= 1
        _sift_down(heap, size, load_i64(heap + 8 * size))
        at = key & 0xFFFFFFFF
        token = np.int64(load_i32(out + 4 * at))
        right = np.int64(load_i32(after + 4 * at))
        if token < 0 or right >= length:
            continue
        product = product_at(pairs, shift, mask, token, np.int64(load_i32(out + 4 * right)))
        if product == NONE or product >> 32 != key >> 32:
            continue  # one of the two has been merged since
        made = product & 0xFFFFFFFF
        store_i32(out + 4 * at, np.int32(made))
        store_i32(out + 4 * right, np.int32(-1))
        beyond = np.int64(load_i32(after + 4 * right))
        store_i32(after + 4 * at, np.int32(beyond))
        if beyond < length:
            store_i32(ahead + 4 * beyond, np.int32(at))
            product = product_at(pairs, shift, mask, made, np.int64(load_i32(out + 4 * beyond)))
            if product != NONE:
                _push(heap, size, (product >> 32) << 32 | at)
                size += 1
        left = np.int64(load_i32(ahead + 4 * at))
        if left >= 0:
            product = product_at(pairs, shift, mask, np.int64(load_i32(out + 4 * left)), made)
            if product != NONE:
                _push(heap, size, (product >> 32) << 32 | left)
                size += 1
    count, at = np.int64(0), np.int64(0)
    while at < length:
        token = np.int64(load_i32(out + 4 * at))
        at = np.int64(load_i32(after + 4 * at))
        store_i32(out + 4 * count, np.int32(token))
        count += 1
    free(room)
    return count
