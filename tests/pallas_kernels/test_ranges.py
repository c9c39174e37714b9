"""Key ranges against masks that are written out key by key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import KeyRanges, causal, decode, packed

quick = settings(max_examples=40, deadline=None)
windows = st.integers(0, 6)


def written_out(shape, keys, sees):
    """mask[b, t, s] = sees(b, t, s)."""
    return np.array([[[sees(b, t, s) for s in range(keys)] for t in range(shape[1])] for b in range(shape[0])], bool)


def near(query, key, window):
    return key <= query and (window == 0 or query - key < window)


@quick
@given(queries=st.integers(1, 5), keys=st.integers(1, 7), window=windows)
def test_causal_ranges_are_aligned_at_the_last_key(queries, keys, window):
    ranges = causal(2, queries, keys, window=window)
    expected = written_out((2, queries), keys, lambda b, t, s: near(t + keys - queries, s, window))
    np.testing.assert_array_equal(ranges.mask(keys), expected)
    assert ranges.start_BT.dtype == ranges.end_BT.dtype == jnp.int32


def test_causal_ranges_have_as_many_keys_as_queries_by_default():
    np.testing.assert_array_equal(causal(1, 3).mask(3)[0], np.tril(np.ones((3, 3), bool)))


@quick
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), padding=st.integers(0, 3), first=st.booleans(), window=windows
)
def test_packed_documents_see_their_own_past_and_padding_sees_nothing(lengths, padding, first, window):
    documents = [(i + 1, n) for i, n in enumerate(lengths)]
    documents.insert(0 if first else len(documents), (0, padding))
    segments = np.array([[s for s, n in documents for _ in range(n)]], np.int32)
    positions = np.array([[t for _, n in documents for t in range(n)]], np.int32)
    size = segments.shape[1]
    mask = packed(jnp.asarray(segments), jnp.asarray(positions), window=window).mask(size)

    def sees(b, t, s):
        return segments[b, t] > 0 and segments[b, t] == segments[b, s] and near(t, s, window)

    np.testing.assert_array_equal(mask, written_out((1, size), size, sees))


@quick
@given(slots=st.lists(st.integers(0, 9), min_size=3, max_size=3), window=windows)
def test_decoding_queries_see_the_cache_up_to_themselves_and_padding_sees_nothing(slots, window):
    slots_BT = np.array([slots], np.int32)
    mask = decode(jnp.asarray(slots_BT), window=window, capacity=6).mask(6)
    expected = written_out((1, 3), 6, lambda b, t, s: slots[t] < 6 and near(slots[t], s, window))
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("start", "end", "seen"), [(1, 3, [1, 2]), (2, 2, []), (3, 1, []), (-4, 2, [0, 1]), (2, 99, [2, 3]), (7, 9, [])]
)
def test_a_range_is_half_open_and_an_empty_or_reversed_one_sees_nothing(start, end, seen):
    ranges = KeyRanges(jnp.array([[start]]), jnp.array([[end]]))
    assert np.flatnonzero(ranges.mask(4)[0, 0]).tolist() == seen


def test_one_compiled_program_serves_every_mask():
    traces = []

    @jax.jit
    def count(ranges):
        traces.append(1)
        return jnp.sum(ranges.mask(6))

    some = [causal(1, 6), causal(1, 6, window=2), packed(jnp.ones((1, 6), jnp.int32), jnp.arange(6, dtype=jnp.int32)[None])]
    assert [int(count(ranges)) for ranges in some] == [21, 11, 21]
    assert len(traces) == 1
