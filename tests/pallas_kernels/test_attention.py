"""The attention that models call against its oracles: values, log-sum-exp, and every gradient, on both mappings over rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KeyRanges, attention, attention_float64, attention_reference, causal, xla

B, T, S, H = 2, 7, 9, 4


def inputs(N, K, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    q, k, v = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))
    rng = np.random.default_rng(seed)
    start, end = rng.integers(-1, S + 1, (B, T)), rng.integers(-1, S + 3, (B, T))
    end[0, 0] = start[0, 0]  # a query that sees nothing
    return q, k, v, KeyRanges(jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32))


@pytest.fixture(params=["rows in sequence", "rows at once", "rows at once, some queries of each"])
def mapping(request, monkeypatch):
    """All branches of the choice by platform and length, on this one."""
    if "some" in request.param:
        monkeypatch.setattr(xla, "QUERIES", 3)
        assert xla.queries_at_once(T) == 3
    if "at once" in request.param:
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, cpu, default: default(*xs))


CASES = [(2, 2, 0.0), (4, 2, 0.0), (6, 1, 1.5)]


@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize(("N", "K", "softcap"), CASES)
def test_values_are_those_of_float64(N, K, softcap):
    q, k, v, ranges = inputs(N, K)
    found = jax.jit(functools.partial(attention, softcap=softcap))(q, k, v, ranges)
    exact = attention_float64(q, k, v, *(np.asarray(x) for x in ranges), softcap)
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-6)
    blind = [np.asarray(x)[0, 0] for x in found]
    assert [set(x.ravel().tolist()) for x in blind] == [{0.0}, {np.float32(-1e30)}, {np.float32(-1e30)}, {0.0}]


@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize(("N", "K", "softcap"), CASES)
def test_gradients_through_both_results_are_those_of_autodiff(N, K, softcap):
    q, k, v, ranges = inputs(N, K, seed=1)
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H)), jax.random.normal(jax.random.key(8), (B, T, N))

    def gradients(function):
        def scalar(q, k, v):
            out, lse = function(q, k, v, ranges, softcap=softcap)[:2]
            return jnp.sum(out * weights[0]) + jnp.sum(jnp.where(lse > -1e29, lse, 0.0) * weights[1])

        return jax.jit(jax.grad(scalar, (0, 1, 2)))(q, k, v)

    for ours, plain in zip(gradients(attention), gradients(attention_reference), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["causal", "random", "nothing"])
def long_inputs(request, monkeypatch):
    """Queries and keys of several tiles each, the last of them not full, so that some tiles are left out."""
    monkeypatch.setattr(xla, "TILE", 1)
    T, S, N, K = 90, 140, 4, 2
    keys = jax.random.split(jax.random.key(3), 3)
    q, k, v = (jax.random.normal(key, (2, x, n, H)) for key, x, n in zip(keys, (T, S, S), (N, K, K), strict=True))
    if request.param == "causal":
        return q, k, v, causal(2, T, S)
    if request.param == "nothing":
        return q, k, v, KeyRanges(jnp.full((2, T), 5, jnp.int32), jnp.full((2, T), 5, jnp.int32))
    rng = np.random.default_rng(5)
    start = rng.integers(-3, S, (2, T))
    end = start + rng.integers(-2, 40, (2, T))
    return q, k, v, KeyRanges(jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32))


def test_tiles_are_left_out_only_where_no_query_sees_a_key(long_inputs):
    q, k, v, ranges = long_inputs
    exact = attention_float64(*(np.asarray(x) for x in (q, k, v, *ranges)))
    for ours, theirs in zip(jax.jit(attention)(q, k, v, ranges), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-6)

    def gradients(function):
        def scalar(q, k, v):
            out, lse = function(q, k, v, ranges, softcap=1.5)[:2]
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e29, lse, 0.0))

        return jax.jit(jax.grad(scalar, (0, 1, 2)))(q, k, v)

    for ours, plain in zip(gradients(attention), gradients(attention_reference), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_its_dtypes_and_is_as_near_as_the_plain_computation():
    q, k, v, ranges = inputs(4, 2, jnp.bfloat16)
    exact, *_ = attention_float64(*(np.asarray(x, np.float64) for x in (q, k, v)), *(np.asarray(x) for x in ranges))
    out, lse, *of_scores = attention(q, k, v, ranges)
    assert {x.dtype for x in of_scores} == {jnp.dtype(jnp.float32)}
    plain, _ = attention_reference(q, k, v, ranges)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    error, allowed = (np.abs(np.asarray(x, np.float64) - exact).max() for x in (out, plain))
    assert error <= 2 * allowed
    grads = jax.grad(lambda q, k, v: attention(q, k, v, ranges)[0].astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)
    assert {g.dtype for g in grads} == {jnp.dtype(jnp.bfloat16)}


def test_the_backward_pass_keeps_no_matrix_of_queries_and_keys():
    long = 64
    q = jnp.ones((1, long, 1, H))
    loss = functools.partial(lambda f, x: f(x, x, x, causal(1, long))[0].sum())
    for function, kept in ((attention, False), (attention_reference, True)):
        _, pullback = jax.vjp(functools.partial(loss, function), q)
        sizes = [leaf.size for leaf in jax.tree.leaves(pullback)]
        assert any(size >= long * long for size in sizes) is kept


def test_heads_that_do_not_divide_are_refused():
    q, k, v, ranges = inputs(3, 2)
    with pytest.raises(ValueError, match="multiples of the 2"):
        attention(q, k, v, ranges)


def test_what_is_only_reported_has_no_gradient():
    q, k, v, ranges = inputs(4, 2)
    grads = jax.grad(lambda *x: sum(jnp.sum(part) for part in attention(*x, ranges)[2:]), (0, 1, 2))(q, k, v)
    assert not any(np.asarray(grad).any() for grad in grads)


def test_statistics_are_left_out_where_they_are_not_asked_for():
    q, k, v, ranges = inputs(4, 2)
    with_them, without = (jax.jit(functools.partial(attention, statistics=asked))(q, k, v, ranges) for asked in (True, False))
    assert without[2:] == (None, None)
    for ours, theirs in zip(without[:2], with_them[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
