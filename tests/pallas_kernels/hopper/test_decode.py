"""Decoding over pages in the interpreter against the attention of the last query: splits, pages in any order, stale keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels import KeyRanges, attention_float64, attention_reference
from pallas_kernels.hopper.decode import decode, splits_for

B, N, K, H, P = 3, 6, 2, 64, 19
SPLITS = 3


@pytest.fixture
def kernel(compiled):
    return lambda splits, softcap=0.0: compiled(decode, scale=H**-0.5, softcap=softcap, splits=splits, interpret=True)


def paged(S, M, seed=0, dtype=jnp.bfloat16):
    """Queries, pages in which no key is left at what it was, and a table that gives every sequence pages of its own."""
    keys = jax.random.split(jax.random.key(seed), 3)
    q = jax.random.normal(keys[0], (B, N, H), dtype)
    k, v = (jax.random.normal(key, (P, S, K, H), dtype) for key in keys[1:])
    return q, k, v, jnp.asarray(np.random.default_rng(seed).permutation(P)[: B * M].reshape(B, M), jnp.int32)


def dense(pages, table):
    return jnp.concatenate([pages[table[:, m]] for m in range(table.shape[1])], axis=1)


def check(found, q, k, v, table, starts, ends, as_near_as, softcap=0.0):
    k, v = dense(k, table), dense(v, table)
    ranges = KeyRanges(jnp.asarray(starts)[:, None], jnp.asarray(ends)[:, None])
    exact = attention_float64(q[:, None], k, v, *(np.asarray(x) for x in ranges), softcap)
    as_near_as(found[0], exact.out_BTNH[:, 0], attention_reference(q[:, None], k, v, ranges, softcap=softcap)[0][:, 0], softcap)
    np.testing.assert_allclose(found[1], exact.lse_BTN[:, 0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [((0, 0, 0), (1, 64, 257)), ((0, 130, 60), (256, 300, 61)), ((0, 9, 200), (0, 9, 320)), ((3, 0, 0), (999, 320, 128))],
)
def test_the_output_is_that_of_the_last_query_in_float64(starts, lengths, kernel, as_near_as):
    q, k, v, table = paged(64, 5)
    starts, lengths = (jnp.asarray(x, jnp.int32) for x in (starts, lengths))
    found = kernel(SPLITS)(q, k, v, table, starts, lengths)
    assert found[0].dtype == jnp.bfloat16
    check(found, q, k, v, table, starts, lengths, as_near_as)


def test_the_order_of_pages_changes_no_bit(kernel):
    q, k, v, table = paged(64, 5)
    bounds = jnp.zeros(B, jnp.int32), jnp.asarray([300, 77, 128], jnp.int32)
    first = kernel(SPLITS)(q, k, v, table, *bounds)
    order = np.random.default_rng(1).permutation(P)
    second = kernel(SPLITS)(q, k[np.argsort(order)], v[np.argsort(order)], jnp.asarray(order)[table], *bounds)
    third = kernel(SPLITS)(q, k, v, table, *bounds)
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


@pytest.mark.parametrize("stale", [np.nan, np.inf])
def test_what_is_stale_does_not_leak(stale, kernel):
    q, k, v, table = paged(64, 5)
    bounds = jnp.asarray([0, 70, 0], jnp.int32), jnp.asarray([300, 77, 0], jnp.int32)
    clean = kernel(SPLITS)(q, k, v, table, *bounds)
    unseen = np.ones((P, 64), bool)
    for pages, start, end in zip(np.asarray(table), *(np.asarray(x) for x in bounds), strict=True):
        for s in range(start, end):
            unseen[pages[s // 64], s % 64] = False
    k, v = (jnp.where(unseen[:, :, None, None], jnp.asarray(stale, x.dtype), x) for x in (k, v))
    nowhere = table.at[0, 4].set(table[0, 4]).at[1, 2:].set(10**6).at[2].set(-1)  # pages that no key is read from
    for table_ in (table, nowhere):
        for ours, theirs in zip(kernel(SPLITS)(q, k, v, table_, *bounds), clean, strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("S", "M", "softcap"), [(16, 6, 3.0), pytest.param(128, 2, 0.0, marks=pytest.mark.slow)])
def test_pages_may_be_smaller_or_larger_than_a_tile(S, M, softcap, kernel, as_near_as):
    q, k, v, table = paged(S, M, dtype=jnp.float16)
    bounds = jnp.asarray([0, 40, 0], jnp.int32), jnp.asarray([96, 90, 17], jnp.int32)
    found = kernel(2, softcap)(q, k, v, table, *bounds)
    check(found, q, k, v, table, *bounds, as_near_as, softcap)


def test_sizes_that_do_not_fit_are_refused(kernel):
    q, k, v, table = paged(24, 2)
    with pytest.raises(ValueError, match="pages of 8, 16, 32"):
        kernel(1)(q, k, v, table, jnp.zeros(B, jnp.int32), jnp.ones(B, jnp.int32))


def test_keys_are_split_so_that_no_few_blocks_are_left_over():
    assert splits_for(64, 256) == 2  # 128 of the 132 blocks that run at once; 3 would leave 60 for a second round
    assert splits_for(132, 512) == 1
    for rows in (1, 3, 40, 200, 700):
        assert 1 <= splits_for(rows, 7) <= 7
