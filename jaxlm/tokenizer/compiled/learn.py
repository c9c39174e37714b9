"""Learning merges: the most frequent pair is replaced wherever it stands, and what this changes is carried along.

New pairs all contain the newest token. So the list of a pair is written once, by the merge that makes the pair, and in rising
order, since the places it comes from are; later it may hold places where the pair has ceased to stand, which are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxlm.contract import InputError
from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined
from jaxlm.tokenizer.compiled.memory import load_i32, load_i64, store_i32, store_i64
from jaxlm.tokenizer.compiled.pairs import (
    BOUNDS,
    BUCKETS,
    BUCKETS_CAPACITY,
    BY_BYTES,
    ENTRY,
    FIELDS,
    HEAP,
    LEAST,
    LISTS,
    LISTS_CAPACITY,
    LISTS_USED,
    LONGEST,
    MADE,
    MERGES,
    NEAR,
    PAIR,
    PAIRS,
    PAIRS_CAPACITY,
    PAIRS_USED,
    REGIONS,
    SLOTS,
    TEXT,
    TEXT_CAPACITY,
    TEXT_USED,
    TOKEN,
    TOKENS,
    TOUCHED,
    USED,
    WEIGHTS,
    drop_first,
    find,
    new_pair,
    new_token,
    push,
    settle_first,
)
from jaxlm.tokenizer.compiled.words import BORDER, after, before, count_pairs, lay_out, list_pairs, region_of
from jaxlm.tokenizer.counts import Counts

ENOUGH, EMPTY, TEXT_FULL, FULL = range(4)  # why `merge_pairs` stopped
STEP = 256  # merges between two returns to Python


@inlined
def note(near, touched, number, side, token, weight):
    """Add to what is known of a neighbour; `near` has weight and places of each, `touched` the tokens that have any."""
    row = near + 32 * token + 16 * side
    places = load_i64(row + 8)
    if places == 0:
        store_i32(touched + 4 * number, np.int32(token))
        number += 1
    store_i64(row, load_i64(row) + weight)
    store_i64(row + 8, places + 1)
    return number


@helper
def replace(state, first, second, new, lists, length, half):
    """Put `new` for a pair in its places, leave those where it stood in the list, and take note of what stood around them.

    Returns how many places there were, different neighbours before, and after; and how often, and with what weight, a place
    followed another immediately: such neighbours are noted as they were, after the place before, and not before this one.
    """
    slots, near = load_i64(state + SLOTS), load_i64(state + NEAR)
    lefts = load_i64(state + TOUCHED)
    rights = lefts + 4 * half
    bounds, weights, regions = load_i64(state + BOUNDS), load_i64(state + WEIGHTS), load_i64(state + REGIONS)
    places, left_number, right_number = np.int64(0), np.int64(0), np.int64(0)
    twins, twin_weight = np.int64(0), np.int64(0)
    region, weight, end = np.int64(0), np.int64(0), np.int64(0)
    for i in range(length):
        at = np.int64(load_i32(lists + 4 * i))
        if load_i32(slots + 4 * at) != first:
            continue
        middle = after(slots, at)
        if load_i32(slots + 4 * middle) != second:
            continue
        stop = after(slots, middle)
        if at >= end:
            region = region_of(bounds, regions, region, at)
            weight, end = load_i64(weights + 8 * region), load_i64(bounds + 8 * (region + 1))
        left = np.int64(load_i32(slots + 4 * before(slots, at)))
        right = np.int64(load_i32(slots + 4 * stop))
        if left == new:  # what stood after the place before this one is `new` now
            twins += 1
            twin_weight += weight
        elif left != BORDER:
            left_number = note(near, lefts, left_number, 0, left, weight)
        if right != BORDER:
            right_number = note(near, rights, right_number, 1, right, weight)
        span = np.int32(at - stop)
        store_i32(slots + 4 * middle, span)
        store_i32(slots + 4 * at + 4, span)
        store_i32(slots + 4 * stop - 4, span)
        store_i32(slots + 4 * at, np.int32(new))
        store_i32(lists + 4 * places, np.int32(at))
        places += 1
    return places, left_number, right_number, twins, twin_weight


@inlined
def lower(state, key, weight):
    """Take from the count of a pair, where it is known."""
    row = find(state, key)
    if row != 0:
        store_i64(row + 8, load_i64(row + 8) - weight)


@inlined
def begin_list(state, key, row, weight, places):
    """Make a pair known that is not rare, and leave in the neighbour's row where its list is to be written, or -1."""
    store_i64(row, 0)
    if places == 0 or weight < load_i64(state + LEAST):
        store_i64(row + 8, -1)
        return
    begin = load_i64(state + LISTS_USED)
    store_i64(state + LISTS_USED, begin + places)
    number = new_pair(state, key, weight)
    pair = load_i64(state + PAIRS) + PAIR * number
    store_i64(pair + 16, begin)
    store_i64(pair + 24, places)
    push(state, weight, number)
    store_i64(row + 8, begin)


@inlined
def put(lists, row, at):
    """Write a place to the list that `begin_list` began."""
    to = load_i64(row + 8)
    if to >= 0:
        store_i32(lists + 4 * to, np.int32(at))
        store_i64(row + 8, to + 1)


@helper
def merge_first(state, half):
    """Merge the first pair of the heap, which is up to date; there is room for all that this makes."""
    pair = load_i64(state + PAIRS) + PAIR * load_i64(load_i64(state + HEAP) + 8)
    drop_first(state)
    made, near, slots = load_i64(state + MADE), load_i64(state + NEAR), load_i64(state + SLOTS)
    key, new = load_i64(pair), 256 + made
    first, second = key >> 32, key & 0xFFFFFFFF
    new_token(state, new, first, second)  # before pairs with it are compared
    lists = load_i64(state + LISTS)
    own = lists + 4 * load_i64(pair + 16)
    places, left_number, right_number, twins, twin_weight = replace(state, first, second, new, own, load_i64(pair + 24), half)

    # The pairs that stood there are gone, those with `new` are new: (new, new) where two places were neighbours.
    lefts = load_i64(state + TOUCHED)
    rights = lefts + 4 * half
    for i in range(left_number):
        token = np.int64(load_i32(lefts + 4 * i))
        row = near + 32 * token
        lower(state, token << 32 | first, load_i64(row))
        begin_list(state, token << 32 | new, row, load_i64(row), load_i64(row + 8))
    for i in range(right_number):
        token = np.int64(load_i32(rights + 4 * i))
        row = near + 32 * token + 16
        weight, number = load_i64(row), load_i64(row + 8)
        lower(state, second << 32 | token, weight)
        if token == first:
            weight, number = weight - twin_weight, number - twins
        begin_list(state, new << 32 | token, row, weight, number)
    begin_list(state, new << 32 | new, near + 32 * new + 16, twin_weight, twins)
    store_i64(pair + 8, 0)

    for i in range(places):
        at = np.int64(load_i32(own + 4 * i))
        left = before(slots, at)
        token = np.int64(load_i32(slots + 4 * left))
        if token != BORDER and token != new:
            put(lists, near + 32 * token, left)
        token = np.int64(load_i32(slots + 4 * after(slots, at)))
        if token != BORDER:
            put(lists, near + 32 * token + 16, at)
    for i in range(left_number):
        store_i64(near + 32 * np.int64(load_i32(lefts + 4 * i)) + 8, 0)
    for i in range(right_number):
        store_i64(near + 32 * np.int64(load_i32(rights + 4 * i)) + 24, 0)
    store_i64(near + 32 * new + 24, 0)

    store_i32(load_i64(state + MERGES) + 8 * made, np.int32(first))
    store_i32(load_i64(state + MERGES) + 8 * made + 4, np.int32(second))
    store_i64(state + MADE, made + 1)


@compiled
def merge_pairs(state, until, half):
    """Merge until there are `until` merges, or return early why not."""
    tokens, pairs = load_i64(state + TOKENS), load_i64(state + PAIRS)
    while load_i64(state + MADE) < until:
        if not settle_first(state):
            return EMPTY
        row = pairs + PAIR * load_i64(load_i64(state + HEAP) + 8)
        key, length = load_i64(row), load_i64(row + 24)
        new = 256 + load_i64(state + MADE)
        if load_i64(state + LISTS_USED) + 2 * length > load_i64(state + LISTS_CAPACITY):
            return FULL
        if load_i64(state + PAIRS_USED) + min(2 * length, 2 * new + 1) > load_i64(state + PAIRS_CAPACITY):
            return FULL
        size = load_i64(tokens + TOKEN * (key >> 32) + 16) + load_i64(tokens + TOKEN * (key & 0xFFFFFFFF) + 16)
        if load_i64(state + TEXT_USED) + size > load_i64(state + TEXT_CAPACITY):
            return TEXT_FULL
        merge_first(state, half)
    return ENOUGH


class Learner:
    """The arrays of `state`, which grow when the kernels ask for it."""

    def __init__(self, counts: Counts, wanted: int, *, by_bytes: bool):
        self._wanted, self._half = wanted, 257 + wanted
        self._arrays: dict[int, np.ndarray] = {}
        self._state = np.zeros(len(FIELDS), np.int64)
        self._put(BY_BYTES, by_bytes)
        self._lay_out(counts)
        tokens, text = np.zeros((256 + wanted, TOKEN // 8), np.int64), np.empty(1 << 16, np.uint8)
        tokens[:256, 0] = (np.arange(256, dtype=np.uint64) << np.uint64(56)).view(np.int64)
        tokens[:256, 1], tokens[:256, 2], text[:256] = np.arange(256), 1, np.arange(256)
        self._set(TOKENS, tokens)
        self._set(TEXT, text, TEXT_CAPACITY)
        self._put(TEXT_USED, 256)
        self._set(NEAR, np.zeros((self._half, 4), np.int64))
        self._set(TOUCHED, np.empty((2, self._half), np.int32))
        self._set(MERGES, np.empty((wanted, 2), np.int32))
        # A merge makes at most two pairs with each token; after a count half of the room is free.
        self._make_room_for_pairs(1 << (4 * self._half).bit_length())

    def _get(self, field: int) -> int:
        return int(self._state[field // 8])

    def _put(self, field: int, value: int) -> None:
        self._state[field // 8] = value

    def _set(self, field: int, array: np.ndarray, capacity: int | None = None) -> None:
        """Let a field have the address of an array, and another one its length."""
        self._arrays[field] = array
        self._put(field, array.ctypes.data)
        if capacity is not None:
            self._put(capacity, len(array))

    def _lay_out(self, counts: Counts) -> None:
        lengths = np.diff(counts.ends, prepend=0)
        order = np.argsort(-counts.counts, kind="stable")
        order = order[(lengths > 1)[order] & (counts.counts > 0)[order]]
        if not len(order):
            return
        weights, borders = counts.counts[order], np.cumsum(lengths[order] + 1)
        used = int(borders[-1]) + 1
        if used >= BORDER:
            raise InputError(f"expected less than {BORDER} bytes of different pre-tokens, found {used}; train on less text")
        slots = np.empty(used + 1, np.int32)
        slots[used] = BORDER  # one more is read
        lay_out(counts.text.ctypes.data, counts.ends.ctypes.data, order.ctypes.data, len(order), slots.ctypes.data)
        changes = np.flatnonzero(np.diff(weights))
        self._set(SLOTS, slots)
        self._set(BOUNDS, np.concatenate([[1], borders[changes] + 1, [used]]))
        self._set(WEIGHTS, weights[np.concatenate([changes, [len(weights) - 1]])], REGIONS)
        self._put(USED, used)

    def _make_room_for_pairs(self, capacity: int) -> None:
        """Those known are forgotten."""
        for field in (PAIRS, BUCKETS, HEAP):
            self._arrays.pop(field, None)
        self._set(PAIRS, np.empty((capacity, PAIR // 8), np.int64), PAIRS_CAPACITY)
        self._set(HEAP, np.empty((capacity, ENTRY // 8), np.int64))
        self._set(BUCKETS, np.empty(2 * capacity, np.int32), BUCKETS_CAPACITY)

    def _know_pairs(self) -> None:
        """Count the pairs anew and list them."""
        state = self._state.ctypes.data
        while not count_pairs(state) or 2 * self._get(PAIRS_USED) > self._get(PAIRS_CAPACITY):
            self._make_room_for_pairs(2 * self._get(PAIRS_CAPACITY))
        needed = self._get(LISTS_USED)
        capacity = needed + max(needed // 2, 2 * self._get(LONGEST)) + 1
        if capacity > self._get(LISTS_CAPACITY):
            self._arrays.pop(LISTS, None)
            self._set(LISTS, np.empty(capacity, np.int32), LISTS_CAPACITY)
        list_pairs(state)

    def _grow_text(self) -> None:
        text = self._arrays[TEXT]
        self._set(TEXT, np.concatenate([text, np.empty_like(text)]), TEXT_CAPACITY)

    def merges(self) -> Iterator[np.ndarray]:
        """Merges as pairs of tokens, int32 [some, 2], until there are as many as wanted or the counts support no more."""
        if not self._get(USED):  # no word has a pair
            return
        made = 0
        self._know_pairs()
        while made < self._wanted:
            why = merge_pairs(self._state.ctypes.data, min(made + STEP, self._wanted), self._half)
            if self._get(MADE) > made:
                yield self._arrays[MERGES][made : self._get(MADE)]
                made = self._get(MADE)
            if why == TEXT_FULL:
                self._grow_text()
            elif why == FULL or (why == EMPTY and self._get(LEAST) > 1):
                self._know_pairs()
            elif why == EMPTY:
                return
