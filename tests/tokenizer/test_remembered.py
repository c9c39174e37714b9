"""The table of pre-tokens against a dict, where hashes differ, and where somebody saw to it that they do not."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import remembered
from jaxlm.tokenizer.remembered import SHORT, Remembered, distinct, keys_of

LATE = [b"the same" + bytes(i) + b"." for i in range(7)] + [
    b"the same" + bytes([i]) for i in range(9)
]  # differ in their second half
words = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=SHORT),
        st.text("a\x00", min_size=1, max_size=SHORT).map(str.encode),
        st.sampled_from(LATE),
    )
)
batches = st.lists(words.filter(bool), max_size=6)


def keys(some: list[bytes]) -> np.ndarray:
    lengths = np.array([len(word) for word in some], np.int64)
    return keys_of(b"".join(some), np.cumsum(lengths) - lengths, lengths)


def as_it_is():
    return contextlib.nullcontext()


def all_alike():
    return mock.patch.object(remembered, "hashes", lambda k: np.full(len(k), 2**63, np.uint64))


@pytest.mark.parametrize("hashing", [as_it_is, all_alike])
@settings(max_examples=80, deadline=None)
@given(batches=batches)
def test_a_number_is_that_of_the_same_bytes_or_none(hashing, batches):
    table, numbers = Remembered(1000), dict[bytes, int]()
    with hashing():
        for batch in batches:
            found = table.numbers(keys(batch))
            known = [numbers.get(word, 0) for word in batch]
            if hashing is as_it_is:
                assert found.tolist() == known
            assert all(a in (0, b) for a, b in zip(found.tolist(), known, strict=True))
            first, which = distinct(keys(batch))
            assert [batch[first[i]] for i in which] == batch
            assert len(first) == len(set(batch))
            new = [i for i in first if found[i] == 0]
            for i in new:
                numbers[batch[i]] = len(numbers) + 1
            table.add(keys(batch)[new], np.array([numbers[batch[i]] for i in new], np.int64))
    assert table.size <= len(numbers)


def test_it_grows_to_what_it_may_hold_and_no_further():
    some = [str(i).encode() for i in range(10_000)]
    table = Remembered(4000)
    for start in range(0, len(some), 500):
        table.add(keys(some[start : start + 500]), np.arange(start, start + 500) + 1)
    found = table.numbers(keys(some))
    assert table.size == 4000
    assert ((found == 0) | (found == np.arange(10_000) + 1)).all()
    assert (found[:3500] > 0).mean() > 0.99
    assert (found > 0).sum() == 4000
    assert len(table._rows) <= 4 * 4000
