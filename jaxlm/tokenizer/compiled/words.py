"""Words as lists of tokens, and for every pair the list of the places where it stands.

A word is an entry of the counts. Slots hold the tokens of all words, `BORDER` before and after each. A token that takes s > 1
slots stands in the first; the second and the last hold -s, so that one steps over it from both sides. Words that occur equally
often are a region, so the weight of a place is a step function of it, and costs no memory.

A list has the places of a pair in rising order. Counts only fall, so a pair that is rarer than `LEAST` need not be known before
all others are: then everything is counted anew, with a lower bound.
"""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined
from jaxlm.tokenizer.compiled.memory import load_i32, load_i64, load_u8, store_i32, store_i64
from jaxlm.tokenizer.compiled.pairs import (
    BOUNDS,
    BUCKETS_CAPACITY,
    HEAP_USED,
    LEAST,
    LISTS,
    LISTS_USED,
    LONGEST,
    PAIR,
    PAIRS,
    PAIRS_CAPACITY,
    PAIRS_USED,
    REGIONS,
    SLOTS,
    USED,
    WEIGHTS,
    clear_buckets,
    find,
    hang_in,
    new_pair,
    sift_down,
)

BORDER = 0x7FFFFFFF
SHARE = 8  # bits: pairs up to 2^8 times rarer than the most frequent are known


@inlined
def after(slots, at):
    """The slot of the next token."""
    span = np.int64(load_i32(slots + 4 * at + 4))
    if span < 0:
        return at - span
    return at + 1


@inlined
def before(slots, at):
    """The slot of the token before."""
    span = np.int64(load_i32(slots + 4 * at - 4))
    if span < 0:
        return at + span
    return at - 1


@inlined
def region_of(bounds, regions, region, at):
    """The region of slot `at`, which is `region` or after it."""
    step = np.int64(1)
    while region + step < regions and load_i64(bounds + 8 * (region + step)) <= at:
        region += step
        step *= 2
    while step > 1:
        step >>= 1
        if region + step < regions and load_i64(bounds + 8 * (region + step)) <= at:
            region += step
    return region


@compiled
def lay_out(text, ends, order, number, slots):
    """Write `number` words of the counts to the slots, in the order given (int64). Returns the slots used."""
    store_i32(slots, np.int32(BORDER))
    used = np.int64(1)
    for i in range(number):
        word = load_i64(order + 8 * i)
        begin = np.int64(0)
        if word > 0:
            begin = load_i64(ends + 8 * (word - 1))
        for at in range(begin, load_i64(ends + 8 * word)):
            store_i32(slots + 4 * used, np.int32(load_u8(text + at)))
            used += 1
        store_i32(slots + 4 * used, np.int32(BORDER))
        used += 1
    return used


@helper
def close_up(state):
    """Let every token take one slot, and leave out words that are one token."""
    slots, used = load_i64(state + SLOTS), load_i64(state + USED)
    bounds, regions = load_i64(state + BOUNDS), load_i64(state + REGIONS)
    at, to, begin, region = np.int64(1), np.int64(1), np.int64(1), np.int64(0)
    while at < used:
        if to == begin:  # a word begins
            while region < regions and load_i64(bounds + 8 * region) <= at:
                store_i64(bounds + 8 * region, to)
                region += 1
        token = load_i32(slots + 4 * at)
        at = after(slots, at)
        if token == BORDER and to - begin < 2:
            to = begin
            continue
        store_i32(slots + 4 * to, token)
        to += 1
        if token == BORDER:
            begin = to
    while region <= regions:
        store_i64(bounds + 8 * region, to)
        region += 1
    store_i32(slots + 4 * to, np.int32(BORDER))
    store_i64(state + USED, to)


@compiled
def count_pairs(state):
    """Count all pairs of neighbours, keep the rows of those that are not rare, and note how many places they have.

    Returns whether there was room for the rows; where not, nothing is lost. `LISTS_USED` and `LONGEST` are what the lists need.
    """
    close_up(state)
    slots, used, pairs = load_i64(state + SLOTS), load_i64(state + USED), load_i64(state + PAIRS)
    bounds, weights, regions = load_i64(state + BOUNDS), load_i64(state + WEIGHTS), load_i64(state + REGIONS)
    room = min(load_i64(state + PAIRS_CAPACITY), load_i64(state + BUCKETS_CAPACITY) // 2)
    clear_buckets(state)
    store_i64(state + PAIRS_USED, 0)
    region, most = np.int64(0), np.int64(0)
    for at in range(1, used - 1):
        first, second = np.int64(load_i32(slots + 4 * at)), np.int64(load_i32(slots + 4 * at + 4))
        if first == BORDER or second == BORDER:
            continue
        region = region_of(bounds, regions, region, at)
        key = first << 32 | second
        row = find(state, key)
        if row == 0:
            if load_i64(state + PAIRS_USED) >= room:
                return 0
            row = pairs + PAIR * new_pair(state, key, 0)
        count = load_i64(row + 8) + load_i64(weights + 8 * region)
        store_i64(row + 8, count)
        store_i64(row + 24, load_i64(row + 24) + 1)
        most = max(most, count)

    least = max(most >> SHARE, np.int64(1))
    known, places, longest = np.int64(0), np.int64(0), np.int64(0)
    clear_buckets(state)
    for i in range(load_i64(state + PAIRS_USED)):
        row = pairs + PAIR * i
        if load_i64(row + 8) < least:
            continue
        to, length = pairs + PAIR * known, load_i64(row + 24)
        store_i64(to, load_i64(row))
        store_i64(to + 8, load_i64(row + 8))
        store_i64(to + 16, places)
        store_i64(to + 24, 0)
        hang_in(state, load_i64(to), known)
        known += 1
        places += length
        longest = max(longest, length)
    store_i64(state + PAIRS_USED, known)
    store_i64(state + LEAST, least)
    store_i64(state + LISTS_USED, places)
    store_i64(state + LONGEST, longest)
    return 1


@compiled
def list_pairs(state):
    """Write the lists of the pairs counted, and their heap. Returns how many pairs there are."""
    slots, lists, pairs = load_i64(state + SLOTS), load_i64(state + LISTS), load_i64(state + PAIRS)
    for at in range(1, load_i64(state + USED) - 1):
        first, second = np.int64(load_i32(slots + 4 * at)), np.int64(load_i32(slots + 4 * at + 4))
        if first == BORDER or second == BORDER:
            continue
        row = find(state, first << 32 | second)
        if row != 0:
            length = load_i64(row + 24)
            store_i32(lists + 4 * (load_i64(row + 16) + length), np.int32(at))
            store_i64(row + 24, length + 1)
    number = load_i64(state + PAIRS_USED)
    store_i64(state + HEAP_USED, number)
    for i in range(number - 1, -1, -1):
        sift_down(state, i, load_i64(pairs + PAIR * i + 8), i)
    return number
