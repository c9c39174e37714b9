"""Learning compiled: against Python, against counting everything anew after each merge, and where room runs out."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled import learn
from jaxlm.tokenizer.compiled.learn import Learner
from jaxlm.tokenizer.compiled.pairs import (
    BOUNDS,
    LEAST,
    LISTS,
    LISTS_CAPACITY,
    MADE,
    PAIRS,
    PAIRS_CAPACITY,
    PAIRS_USED,
    SLOTS,
    USED,
    WEIGHTS,
)
from jaxlm.tokenizer.compiled.words import BORDER
from jaxlm.tokenizer.counts import Counts
from jaxlm.tokenizer.learning import learned

quick = settings(max_examples=200, deadline=None)


def merges_of(counts: dict[bytes, int], wanted: int, by_bytes: bool) -> list[tuple[int, ...]]:
    learner = Learner(Counts.of(counts), wanted, by_bytes=by_bytes)
    return [tuple(pair) for some in learner.merges() for pair in some.tolist()]


words = st.dictionaries(
    st.one_of(
        st.lists(st.sampled_from(b"a"), max_size=20).map(bytes),
        st.lists(st.sampled_from(b"ab"), max_size=14).map(bytes),
        st.lists(st.sampled_from(b"abc\x00\xff"), max_size=14).map(bytes),
    ),
    st.one_of(st.integers(0, 4), st.integers(0, 2**40)),
    max_size=20,
)


@quick
@given(counts=words, wanted=st.integers(0, 40), by_bytes=st.booleans())
def test_merges_are_those_of_python(counts, wanted, by_bytes):
    assert merges_of(counts, wanted, by_bytes) == list(learned(counts, wanted, by_bytes=by_bytes))


@quick
@given(counts=words, by_bytes=st.booleans(), seed=st.integers(0, 3))
def test_the_order_of_the_counts_does_not_matter(counts, by_bytes, seed):
    shuffled = random.Random(seed).sample(list(counts.items()), len(counts))
    assert merges_of(dict(shuffled), 20, by_bytes) == merges_of(counts, 20, by_bytes)


@pytest.mark.parametrize("by_bytes", [True, False])
def test_merges_of_random_words_down_to_the_last(by_bytes):
    """All the way, through every count, so that pairs that were rare at first come in."""
    rng = random.Random(0)
    letters = b"etaoinshrdlu"
    counts = {
        bytes(rng.choices(letters, weights=range(12, 0, -1), k=rng.randint(1, 12))): int(rng.paretovariate(0.5))
        for _ in range(3000)
    }
    found = merges_of(counts, 50_000, by_bytes)
    assert len(found) > 5000
    assert found == list(learned(counts, 50_000, by_bytes=by_bytes))


def state_of(learner: Learner) -> tuple[Counter, dict, dict[tuple[int, int], int], dict]:
    """Pairs counted anew in the words as they stand, and their places; then what the learner knows of both."""
    slots, bounds, weights = (learner._arrays[field] for field in (SLOTS, BOUNDS, WEIGHTS))
    counts: Counter[tuple[int, int]] = Counter()
    places: dict[tuple[int, int], list[int]] = {}
    at, stands = 1, []
    while at < learner._get(USED):
        stands.append((at, int(slots[at])))
        at += max(1, -int(slots[at + 1])) if slots[at] != BORDER else 1
    for (at, first), (_, second) in pairwise(stands):
        if BORDER not in (first, second):
            counts[first, second] += int(weights[np.searchsorted(bounds, at, side="right") - 1])
            places.setdefault((first, second), []).append(at)
    rows = learner._arrays[PAIRS][: learner._get(PAIRS_USED)].tolist()
    known = {(key >> 32, key & 0xFFFFFFFF): count for key, count, _, _ in rows}
    lists = {(key >> 32, key & 0xFFFFFFFF): learner._arrays[LISTS][at : at + n].tolist() for key, _, at, n in rows}
    assert len(known) == len(rows)
    return counts, places, known, lists


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_and_places_are_right_after_every_merge(seed, stdlib_texts):
    rng = random.Random(seed)
    counts = {bytes(rng.choices(b"aab", k=rng.randint(1, 9))): int(rng.paretovariate(0.4)) for _ in range(60)}
    counts |= Counter(word.encode() for word in stdlib_texts[3].split()[:300])
    learner = Learner(Counts.of(counts), 200, by_bytes=True)
    learner._know_pairs()
    while learner._get(MADE) < 200:
        why = learn.merge_pairs(learner._state.ctypes.data, learner._get(MADE) + 1, learner._half)
        if why != learn.ENOUGH:
            assert why in (learn.EMPTY, learn.FULL)
            learner._know_pairs()
        fresh, places, known, lists = state_of(learner)
        assert known == {pair: fresh[pair] for pair in known}
        assert {pair for pair, count in fresh.items() if count >= learner._get(LEAST)} <= set(known)
        for pair, found in lists.items():
            if known[pair]:
                assert found == sorted(found)
                assert set(places[pair]) <= set(found)


def test_lists_without_room_are_made_anew():
    """Places of one letter: each merge needs room for twice its list."""
    rng = random.Random(1)
    counts = {bytes(rng.choices(b"ab", k=400)): 1 for _ in range(50)}
    learner = Learner(Counts.of(counts), 300, by_bytes=False)
    calls = []
    know, learner._know_pairs = learner._know_pairs, lambda: (calls.append(learner._get(MADE)), know())  # type: ignore[method-assign]
    found = [tuple(pair) for some in learner.merges() for pair in some.tolist()]
    assert found == list(learned(counts, 300, by_bytes=False))
    assert len(calls) > 2
    assert learner._get(LISTS_CAPACITY) < 4 * 50 * 400


def test_rows_without_room_are_made_anew():
    """More different pairs than the first table holds: every byte beside every other."""
    counts = {bytes([a, b]): 1 + (a * 7 + b) % 5 for a in range(0, 256, 2) for b in range(256)}
    learner = Learner(Counts.of(counts), 10, by_bytes=True)
    before = learner._get(PAIRS_CAPACITY)
    assert [tuple(p) for s in learner.merges() for p in s.tolist()] == list(learned(counts, 10, by_bytes=True))
    assert learner._get(PAIRS_CAPACITY) > before


def test_long_tokens_find_room():
    """One letter 2^18 times: the tokens are 2, 4, ..., 2^18 bytes long."""
    counts = {b"a" * (1 << 18): 1, b"ab": 3}
    assert merges_of(counts, 100, True) == list(learned(counts, 100, by_bytes=True))


def test_counts_above_all_of_int32():
    counts = {b"ab": 2**33, b"xab": 2**40, b"cd": 2**40 + 2**33 + 1, b"ef": 2**31}
    assert merges_of(counts, 4, True) == [(99, 100), (97, 98), (120, 257), (101, 102)]


def test_ties_are_compared_beyond_the_first_eight_bytes():
    """Long tokens that differ late, or end where the other goes on, or in a zero."""
    stems = [b"abcdefgh", b"abcdefghi", b"abcdefgh\x00", b"abcdefghj", b"abcdefg"]
    counts = {stem: 50 for stem in stems} | {stem + bytes([c]): 7 for stem in stems for c in b"\x00\xffmn"}
    for by_bytes in (True, False):
        assert merges_of(counts, 60, by_bytes) == list(learned(counts, 60, by_bytes=by_bytes))


def test_nothing_to_merge():
    for counts in ({}, {b"a": 5, b"": 2}, {b"ab": 0}):
        assert merges_of(counts, 5, True) == []
    assert merges_of({b"ab": 1}, 0, True) == []
