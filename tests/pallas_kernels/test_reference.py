"""Attention over ranges: against float64, the float64 against a dense softmax, and the gradients of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import KeyRanges, attention_float64, attention_reference, causal

B, T, S, N, K, H = 2, 5, 7, 4, 2, 8
CAPS = [0.0, 1.5]
bounds = st.lists(st.integers(-3, S + 3), min_size=B * T, max_size=B * T)


def ranges_of(start, end):
    return KeyRanges(*(jnp.asarray(x, jnp.int32).reshape(B, T) for x in (start, end)))


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(np.float32) for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H))]


@functools.cache
def compiled(cap):
    return jax.jit(functools.partial(attention_reference, softcap=cap))


@functools.cache
def gradient(cap):
    """Of sum(out * a) + sum(lse * b) over rows that see a key, by q, k and v."""

    def scalar(q, k, v, ranges, a, b):
        out, lse = attention_reference(q, k, v, ranges, softcap=cap)
        return jnp.sum(out * a) + jnp.sum(jnp.where(lse > -1e29, lse * b, 0.0))

    return jax.jit(jax.grad(scalar, (0, 1, 2)))


def dense(q, k, v, mask, cap):
    """The same once more, all rows at once, with the keys of each query head written out."""
    k, v = (np.repeat(np.asarray(x, np.float64), N // K, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->btns", np.asarray(q, np.float64), k) / np.sqrt(H)
    scores = np.where(mask[:, :, None], cap * np.tanh(scores / cap) if cap else scores, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.log(np.exp(scores).sum(-1))
        weights = np.where(np.isfinite(lse)[..., None], np.exp(scores - lse[..., None]), 0.0)
    return np.einsum("btns,bsnh->btnh", weights, v), lse


@pytest.mark.parametrize("cap", CAPS)
@settings(max_examples=25, deadline=None)
@given(start=bounds, end=bounds, seed=st.integers(0, 99))
def test_random_ranges_agree_with_float64_and_float64_with_a_dense_softmax(cap, start, end, seed):
    q, k, v = drawn(seed)
    ranges = ranges_of(start, end)
    out, lse = compiled(cap)(q, k, v, ranges)
    out64, lse64, *_ = attention_float64(q, k, v, *ranges, cap)
    np.testing.assert_allclose(out, out64, rtol=0, atol=3e-6)
    np.testing.assert_allclose(lse, lse64, rtol=2e-6, atol=2e-6)
    mask = np.asarray(ranges.mask(S))
    plain, plain_lse = dense(q, k, v, mask, cap)
    sees = mask.any(-1)
    np.testing.assert_allclose(out64, plain, atol=1e-12)
    np.testing.assert_allclose(lse64[sees], plain_lse[sees], atol=1e-12)
    assert (np.asarray(out)[~sees] == 0.0).all()
    assert (np.asarray(lse)[~sees] == np.float32(-1e30)).all()
    assert (out64[~sees] == 0.0).all()


@pytest.mark.parametrize("cap", CAPS)
def test_rows_that_see_nothing_are_zero_and_have_zero_gradients(cap):
    q, k, v = drawn(3)
    start = np.array([[0, 3, 5, 9, 0], [0, 0, 0, 0, 0]])
    end = np.array([[7, 3, 2, 12, -1], [0, 0, 0, 0, 0]])
    ranges, ones = ranges_of(start, end), np.ones((B, T, N, H), np.float32)
    out, _ = compiled(cap)(q, k, v, ranges)
    assert (np.asarray(out)[0, 1:] == 0).all()
    assert (np.asarray(out)[1] == 0).all()
    dq, dk, dv = map(np.asarray, gradient(cap)(q, k, v, ranges, ones, ones[..., 0]))
    assert all(np.isfinite(g).all() for g in (dq, dk, dv))
    assert all((g == 0).all() for g in (dq[0, 1:], dq[1], dk[1], dv[1]))
    assert all((g != 0).any() for g in (dq[0, 0], dk[0], dv[0]))


@pytest.mark.parametrize("cap", CAPS)
def test_gradients_are_slopes_of_the_float64_oracle(cap):
    arrays = drawn(5)
    ranges = ranges_of([0, 0, 2, 4, 6, 0, 1, 3, 5, 7], [1, 7, 5, 4, 9, 2, 2, 7, 3, 7])
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((B, T, N, H)).astype(np.float32), rng.standard_normal((B, T, N)).astype(np.float32)
    grads = gradient(cap)(*arrays, ranges, a, b)
    sees = np.asarray(ranges.mask(S)).any(-1)[..., None]

    def scalar(moved):
        out, lse, *_ = attention_float64(*moved, *ranges, cap)
        return (out * a).sum() + np.where(sees, lse * b, 0.0).sum()

    for which in range(3):
        for _ in range(4):
            step = rng.standard_normal(arrays[which].shape)
            sides = [[x + (sign * 1e-5 * step if i == which else 0.0) for i, x in enumerate(arrays)] for sign in (1, -1)]
            slope = (scalar(sides[0]) - scalar(sides[1])) / 2e-5
            assert float((np.asarray(grads[which], np.float64) * step).sum()) == pytest.approx(slope, rel=2e-4, abs=2e-4)


def test_gradients_are_those_of_a_dense_softmax():
    q, k, v = drawn(8)
    a = drawn(9)[0]
    ranges = causal(B, T, S, window=4)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        scores = jnp.where(ranges.mask(S)[:, None], jnp.einsum("btnh,bsnh->bnts", q, k) * H**-0.5, -jnp.inf)
        return jnp.sum(a * jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v))

    expected = jax.jit(jax.grad(plain, (0, 1, 2)))(q, k, v)
    found = gradient(0.0)(q, k, v, ranges, a, np.zeros((B, T, N), np.float32))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), list(found), list(expected))


def test_scores_in_the_thousands_neither_overflow_nor_blur():
    q, k, v = drawn(11, scale=60.0)
    ranges = causal(B, T, S)
    out, lse = compiled(0.0)(q, k, v, ranges)
    out64, lse64, *_ = attention_float64(q, k, v, *ranges)
    assert np.abs(lse64).max() > 3000
    np.testing.assert_allclose(lse, lse64, rtol=1e-5)
    np.testing.assert_allclose(out, out64, atol=0.02 * np.abs(v).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_in_the_dtype_of_the_values_with_a_float32_lse(dtype):
    q, k, v = (jnp.asarray(x, dtype) for x in drawn(12))
    ranges = causal(B, T, S, window=3)
    out, lse = attention_reference(q, k, v, ranges)
    assert (out.dtype, lse.dtype) == (jnp.dtype(dtype), jnp.float32)
    out64, lse64, *_ = attention_float64(*(np.asarray(x, np.float64) for x in (q, k, v)), *ranges)
    np.testing.assert_allclose(np.asarray(out, np.float64), out64, atol=0.02)
    np.testing.assert_allclose(lse, lse64, rtol=0, atol=1e-5)
