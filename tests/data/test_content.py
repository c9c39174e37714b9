"""The checksum of a batch: the same on the host and on the devices, of parts and of the whole, and of no other batch."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import Batch, content_sum, row_sums


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    tokens, labels, segments, positions = rng.integers(0, 50_000, (4, 6, 32), dtype=np.int32)
    return Batch(tokens, labels, rng.random((6, 32)) < 0.7, segments, positions)


def by_hand(made):
    """One row at a time, in Python's integers."""
    total, most = 0, 2**32
    for row in range(len(made.tokens)):
        T, value = made.tokens.shape[1], 0
        for number, array in enumerate(made):
            for t in range(T):
                value += int(array[row, t]) * ((1 + number * T + t) * 0x9E3779B9 % most | 1)
        value %= most
        value = (value ^ value >> 16) * 0x85EBCA6B % most
        value = (value ^ value >> 13) * 0xC2B2AE35 % most
        total += value ^ value >> 16
    return total % most


def test_host_devices_and_python_agree(made):
    assert row_sums(made).dtype == np.uint32
    expected = by_hand(made)
    assert int(row_sums(made).sum(dtype=np.uint32)) == expected
    found = jax.jit(content_sum)(made)
    assert found.dtype == np.uint32
    assert int(found) == expected


def test_the_sums_of_the_parts_add_up_to_that_of_the_whole(made):
    parts = [jax.tree.map(lambda array, first=first: array[first::2], made) for first in range(2)]
    assert sum(int(jax.jit(content_sum)(part)) for part in parts) % 2**32 == by_hand(made)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_one_changed_value_or_two_that_change_places_are_seen(made, data):
    name = data.draw(st.sampled_from(Batch._fields))
    array = getattr(made, name).copy()
    a, b = (data.draw(st.tuples(st.integers(0, 5), st.integers(0, 31))) for _ in range(2))
    if array[a] == array[b]:
        array[a] = not array[a] if name == "loss_mask" else array[a] + 1
    else:
        array[a], array[b] = array[b], array[a]
    other = made._replace(**{name: array})
    assert row_sums(other).sum(dtype=np.uint32) != row_sums(made).sum(dtype=np.uint32)


def test_a_row_twice_and_another_not_at_all_is_seen(made):
    other = jax.tree.map(lambda array: array[[0, 0, 2, 3, 4, 5]], made)
    assert row_sums(other).sum(dtype=np.uint32) != row_sums(made).sum(dtype=np.uint32)
