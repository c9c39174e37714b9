"""Which merge can make a token, against what happens in all the short texts over a few letters."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.interop.last_merge import first_broken, merged, parts_by_rank, without_idle


def slow(text: bytes, ranks: dict[tuple[bytes, bytes], int]) -> tuple[list[bytes], set[tuple[bytes, bytes]]]:
    """Merging as it is defined, and the merges that happened."""
    parts, happened = [bytes([byte]) for byte in text], set()
    while possible := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, at = min(possible)
        happened.add((parts[at], parts[at + 1]))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts, happened


@st.composite
def merge_lists(draw):
    """Merges over three letters: the same token of other parts, and parts that only a later one makes, are frequent."""
    tokens = [b"a", b"b", b"c"]
    merges = []
    for _ in range(draw(st.integers(1, 9))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges and len(pair[0] + pair[1]) <= 5:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return draw(st.permutations(merges))


@settings(max_examples=60, deadline=None)
@given(merges=merge_lists())
def test_merges_that_happen_in_some_text_are_those_that_end_their_own_bytes(merges):
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    happened = set()
    for length in range(2, 7):
        for letters in product(b"abc", repeat=length):
            happened |= slow(bytes(letters), ranks)[1]
    kept = without_idle(merges, keep=lambda rank, merge: False)
    assert kept == [merge for merge in merges if merge in happened]
    without = {merge: rank for rank, merge in enumerate(kept)}
    for letters in product(b"abc", repeat=6):
        assert slow(bytes(letters), without)[0] == slow(bytes(letters), ranks)[0]


@settings(max_examples=100, deadline=None)
@given(merges=merge_lists(), text=st.text("abc", max_size=12))
def test_merged_is_merging_as_defined(merges, text):
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    parts, last = merged(text.encode(), lambda a, b: ranks.get((a, b)))
    assert parts == slow(text.encode(), ranks)[0]
    assert (last is None) == (len(parts) == len(text))


def test_by_rank_any_parts_make_a_token():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"ca": 6, b"cabc": 7, b"aaa": 8}
    assert parts_by_rank(b"ab", ranks) == [b"a", b"b"]
    assert parts_by_rank(b"abc", ranks) == [b"ab", b"c"]
    assert parts_by_rank(b"cabc", ranks) == [b"c", b"abc"]
    assert parts_by_rank(b"aaa", ranks) == [b"a", b"a", b"a"]


def test_the_first_token_that_merges_do_not_make_is_named():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]
    assert first_broken([b"a", b"ab", b"bc"], merges) is None
    assert first_broken([b"ab", b"abc", b"cc"], merges) == (b"abc", [b"ab", b"c"])
    assert without_idle(merges, keep=lambda rank, merge: False) == merges[:2]
    assert without_idle(merges, keep=lambda rank, merge: rank == 2) == merges
