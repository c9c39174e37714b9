"""Key ranges against masks that are written out key by key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import KeyRanges, causal, decode, packed
from pallas_kernels.ranges import key_tiles, query_tiles

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


def test_a_range_beside_the_keys_is_empty_within_them_and_sees_none():
    ranges = KeyRanges(jnp.asarray([[-9, 2, 60, 5]]), jnp.asarray([[-3, 4, 99, 4]])).within(8)
    assert [np.asarray(bound)[0].tolist() for bound in ranges] == [[0, 2, 8, 5], [0, 4, 8, 4]]
    assert np.flatnonzero(np.asarray(ranges.seen(8))[0]).tolist() == [2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_a_key_is_seen_where_any_query_sees_it(seed):
    rng = np.random.default_rng(seed)
    start = rng.integers(-3, 33, (3, 6))
    ranges = KeyRanges(*(jnp.asarray(x, jnp.int32) for x in (start, start + rng.integers(-4, 9, (3, 6))))).within(30)
    np.testing.assert_array_equal(ranges.seen(30), np.asarray(ranges.mask(30)).any(1))


def random_ranges(seed, queries, keys):
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        return causal(1, queries, keys, window=int(rng.integers(0, keys)))
    start = rng.integers(-2, keys + 2, (1, queries))
    end = start + rng.integers(-3, keys, (1, queries)) if kind == 1 else np.full_like(start, keys if kind == 2 else 0)
    return KeyRanges(jnp.asarray(start if kind != 3 else -np.ones_like(start), jnp.int32), jnp.asarray(end, jnp.int32))


@quick
@given(seed=st.integers(0, 10**6), length=st.tuples(*[st.integers(1, 23)] * 2), size=st.tuples(*[st.integers(1, 8)] * 2))
def test_tiles_leave_out_nothing_and_those_that_need_no_mask_need_none(seed, length, size):
    (queries, keys), (q, k) = length, size
    ranges = random_ranges(seed, queries, keys)
    mask = np.asarray(ranges.mask(keys))[0]
    rows, columns = range(-(-queries // q)), range(-(-keys // k))
    tiles = {(i, j): mask[i * q : (i + 1) * q, j * k : (j + 1) * k] for i in rows for j in columns}
    some = {at for at, tile in tiles.items() if tile.any()}
    whole = {(i, j) for (i, j), tile in tiles.items() if tile.all() and (j + 1) * k <= keys}
    sizes = {"queries_per_tile": q, "keys_per_tile": k}
    for of_queries, found in ((True, key_tiles(ranges, keys, **sizes)), (False, query_tiles(ranges, keys, **sizes))):
        for here, (first, last, full_first, full_last) in enumerate(
            zip(*(np.asarray(x)[0].tolist() for x in found), strict=True)
        ):
            assert 0 <= first <= full_first <= full_last <= last <= len(columns if of_queries else rows)
            others = {other for at in some for mine, other in [at if of_queries else at[::-1]] if mine == here}
            assert others <= set(range(first, last))
            # A tile of keys lies also between others that its queries see, where their ranges leave a gap.
            assert bool(others) or first == last or not of_queries
            full = {(here, x) if of_queries else (x, here) for x in range(full_first, full_last)}
            assert full <= whole


@pytest.mark.parametrize("window", [0, 5])
def test_tiles_of_causal_order_are_the_triangle(window):
    tiles = key_tiles(causal(1, 16, window=window), 16, queries_per_tile=4, keys_per_tile=2)
    first, last, full_first, full_last = (np.asarray(x)[0].tolist() for x in tiles)
    assert last == [2, 4, 6, 8]
    assert first == ([0, 0, 2, 4] if window else [0] * 4)
    assert list(zip(full_first, full_last, strict=True)) == (
        [(0, 0), (2, 2), (4, 4), (6, 6)] if window else [(0, 0), (0, 2), (0, 4), (0, 6)]
    )
    back = query_tiles(causal(1, 16, window=window), 16, queries_per_tile=4, keys_per_tile=2)
    assert np.asarray(back.first)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.asarray(back.last)[0].tolist() == ([2, 2, 3, 3, 4, 4, 4, 4] if window else [4] * 8)


def test_a_window_of_fewer_than_no_keys_is_refused():
    with pytest.raises(ValueError, match="0 for no bound, found -1"):
        causal(1, 4, window=-1)
