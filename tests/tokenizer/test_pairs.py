"""The table of pairs against the dict that it is made of; many pre-tokens against one at a time."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import pairs
from jaxlm.tokenizer.merging import TOKEN, merge, product_of
from jaxlm.tokenizer.pairs import NEVER, look_up, merge_many, pair_table, spread

quick = settings(max_examples=80, deadline=None)


@st.composite
def products(draw: st.DrawFn) -> dict[tuple[int, int], int]:
    """Random merges over three bytes; some make what an earlier one makes."""
    found: dict[tuple[int, int], int] = {}
    made = [0, 1, 2]
    for rank in range(draw(st.integers(0, 14))):
        pair = draw(st.tuples(st.sampled_from(made), st.sampled_from(made)).filter(lambda p: p not in found))
        token = draw(st.sampled_from([256 + rank, *made[3:]]))
        found[pair] = product_of(rank, token)
        made.append(token)
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_a_table_finds_its_pairs_and_no_others(count):
    random = np.random.default_rng(count)
    some = {
        tuple(pair): product_of(rank, 256 + rank) for rank, pair in enumerate(random.integers(0, 3000, (count, 2)).tolist())
    }
    table = pair_table(some)
    assert table.dtype == np.int32
    assert len(table) < 6 * len(some) + 32
    left, right = random.integers(0, 3000, (2, 4, 1000)).astype(np.int32)
    known = np.array(list(some), np.int32).reshape(-1, 2)
    left[0, : len(known)], right[0, : len(known)] = known[:1000].T
    rank, token = look_up(table, left, right)
    assert (rank.dtype, token.dtype, rank.shape, token.shape) == (np.int32, np.int32, left.shape, left.shape)
    for a, b, r, t in zip(left.flat, right.flat, rank.flat, token.flat, strict=True):
        assert r == NEVER if (a, b) not in some else some[a, b] == product_of(int(r), int(t))


def test_pairs_that_do_not_spread_are_refused():
    with mock.patch.object(pairs, "_MULTIPLIERS", ((0, 0, 0), (0, 0, 0))):
        pair_table({(0, 1): 5})
        with pytest.raises(ValueError, match="expected pairs whose hashes differ"):
            pair_table({(0, i): i for i in range(3)})


@pytest.mark.parametrize("few", [0, 3, 100])
@quick
@given(product=products(), words=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), max_size=30))
def test_many_pretokens_are_merged_like_each_alone(few, product, words):
    tokens = np.array([token for word in words for token in word], np.int32)
    with mock.patch.object(pairs, "FEW", few):
        found, counts = merge_many(tokens, np.array([len(word) for word in words], np.int64), pair_table(product), product)
    assert (found.dtype, counts.dtype, len(found)) == (np.int32, np.int64, counts.sum())
    ends = np.cumsum(counts)
    assert [found[end - n : end].tolist() for end, n in zip(ends, counts, strict=True)] == [
        merge(word, product) for word in words
    ]
    assert set(found.tolist()) <= {0, 1, 2} | {value & TOKEN for value in product.values()}


def test_spread():
    assert spread(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spread(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


def test_a_pair_whose_two_rows_are_one_finds_its_place():
    product = {pair: product_of(rank, 256 + rank) for rank, pair in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 259)])}
    table = pair_table(product)
    left, right = np.array(list(product), np.int32).T
    assert look_up(table, left, right)[1].tolist() == [256, 257, 258, 259, 260]
