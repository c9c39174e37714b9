"""Counts in arrays and as a dictionary."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.tokenizer.counts import Counts


@given(st.dictionaries(st.binary(max_size=20), st.integers(0, 2**62), max_size=20))
def test_arrays_hold_what_the_dictionary_holds(counts):
    found = Counts.of(counts)
    assert found.counter() == Counter(counts)
    assert len(found) == len(counts)
    assert bool(found) == bool(counts)
    assert found.text.tobytes() == b"".join(counts)


def test_total_is_that_of_the_counts():
    assert Counts.of({b"a": 2**40, b"bc": 3}).total() == 2**40 + 3


def test_a_count_too_large_is_refused():
    with pytest.raises(OverflowError):
        Counts.of({b"a": 2**63})
