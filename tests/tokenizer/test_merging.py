"""Applying merges, against a version that goes through the whole list of merges in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jaxlm.tokenizer.merging import SCAN, TOKEN, merge, product_of


def naive(ids: list[int], product: dict[tuple[int, int], int]) -> list[int]:
    """For each merge, lowest rank first: replace every occurrence, from the left."""
    for (a, b), new in sorted(product.items(), key=lambda item: item[1]):
        out: list[int] = []
        for token in ids:
            if out and out[-1] == a and token == b:
                out[-1] = new & TOKEN
            else:
                out.append(token)
        ids = out
    return ids


@st.composite
def products(draw: st.DrawFn) -> dict[tuple[int, int], int]:
    """Random merges over an alphabet of three bytes: each joins two ids that are there already."""
    found: dict[tuple[int, int], int] = {}
    ids = [0, 1, 2]
    for rank in range(draw(st.integers(0, 12))):
        pair = draw(st.tuples(st.sampled_from(ids), st.sampled_from(ids)).filter(lambda p: p not in found))
        found[pair] = product_of(rank, 256 + rank)
        ids.append(256 + rank)
    return found


@given(products(), st.lists(st.integers(0, 2), max_size=SCAN))
def test_short_pretokens_against_going_through_all_merges(product, ids):
    assert merge(list(ids), product) == naive(ids, product)


@given(products(), st.lists(st.integers(0, 2), min_size=SCAN + 1, max_size=4 * SCAN))
def test_long_pretokens_against_going_through_all_merges(product, ids):
    assert merge(list(ids), product) == naive(ids, product)


def test_leftmost_of_equal_pairs_is_merged():
    assert merge([7, 7, 7], {(7, 7): 256}) == [256, 7]
    assert merge([7] * (SCAN + 3), {(7, 7): 256}) == [256] * ((SCAN + 3) // 2) + [7]


class Counting(dict):
    """A dict that counts how often it is asked."""

    asked = 0

    def get(self, *args):
        self.asked += 1
        return super().get(*args)

    def __contains__(self, key):
        self.asked += 1
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked += 1
        return super().__getitem__(key)


def test_work_on_a_long_pretoken_grows_with_its_length():
    product = {(0, 0): 256} | {(256 + i, 256 + i): 257 + i for i in range(10)}
    asked = []
    for n in (10_000, 40_000):
        counting = Counting(product)
        merge([0] * n, counting)
        asked.append(counting.asked)
    assert asked[1] < 4.2 * asked[0]
    assert asked[0] < 10 * 10_000
