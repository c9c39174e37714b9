"""What has to hold of attention whatever computes it: XLA, the kernels for TPUs and those for Hopper, which are interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KeyRanges, attention, causal, packed
from tests.pallas_kernels.operands import (
    as_on_a_hopper,
    as_on_a_tpu,
    exact_forward,
    exact_gradients,
    operands,
    some_ranges,
)

B, T = 1, 70  # on Hopper two tiles, the last not full


@pytest.fixture(params=["xla", "rows at once", "tpu", "hopper"])
def path(request, monkeypatch):
    """What computes attention, and the dtype that it takes here."""
    if request.param == "rows at once":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, cpu, default: default(*xs))
    if request.param == "tpu":
        as_on_a_tpu(monkeypatch)
    if request.param == "hopper":
        if jax.__version_info__ < (0, 11):
            pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11")
        request.getfixturevalue("deadlock_ends_the_process")
        as_on_a_hopper(monkeypatch)
    return request.param


def given(path, seed, *, T=T, S=T):
    """q, k, v and the gradients by out and lse; on Hopper in bfloat16."""
    hopper = path == "hopper"
    return operands(seed, B=B, T=T, S=S, N=2, K=1, H=64 if hopper else 16, dtype=jnp.bfloat16 if hopper else jnp.float32)


def _both(ranges, q, k, v, d_out, d_lse):
    """out, lse, and the gradients through both."""

    def function(q, k, v):
        found = attention(q, k, v, ranges)
        return found.out_BTNH, jnp.where(found.lse_BTN > -1e29, found.lse_BTN, 0.0)

    results, pull = jax.vjp(function, q, k, v)
    return [*results, *pull((d_out, d_lse))]


@functools.cache
def _compiled(path):
    """Traced while what computes attention is that of the path: one program for all tests of it with these shapes."""
    return jax.jit(functools.partial(_both))


def both(path, ranges, *arrays):
    """`_both` in float64. The interpreter for GPUs has to be done before anything else begins."""
    return [np.asarray(x, np.float64) for x in jax.block_until_ready(_compiled(path)(ranges, *arrays))]


def near(path, found, expected, *, times=1.0):
    """Within a few roundings of the largest number: sums may be taken in another order."""
    for ours, theirs in zip(found, expected, strict=True):
        size = max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=times * size * (2.0**-8 if path == "hopper" else 1e-5))


def test_many_random_ranges_are_those_of_float64(path):
    arrays = given(path, 0)
    for seed in range(4):
        ranges = some_ranges("random", seed, B=B, T=T, S=T)
        out, lse, *gradients = both(path, ranges, *arrays)
        exact = exact_forward(*arrays[:3], ranges, 0.0)
        near(path, [out, lse], [exact.out_BTNH, np.where(exact.lse_BTN > -1e29, exact.lse_BTN, 0.0)])
        near(path, gradients, exact_gradients(*arrays[:3], ranges, *arrays[3:], 0.0), times=2.0)


def test_a_window_over_all_keys_is_causal_order(path):
    arrays = given(path, 1)
    expected = both(path, causal(B, T), *arrays)
    for window in (T, T + 1, 10**6):
        for ours, theirs in zip(both(path, causal(B, T, window=window), *arrays), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_documents_in_a_pack_are_what_each_is_by_itself(path):
    arrays, cut = given(path, 2), 27
    t = np.arange(T)
    segments, positions = np.where(t < cut, 1, 2), np.where(t < cut, t, t - cut)
    together = both(path, packed(*(jnp.asarray(np.tile(x, (B, 1)), jnp.int32) for x in (segments, positions))), *arrays)
    for rows in (slice(0, cut), slice(cut, T)):
        length = rows.stop - rows.start

        def moved(x, rows=rows, length=length):  # to the front, before padding
            return jnp.zeros_like(x).at[:, :length].set(x[:, rows])

        inside = jnp.asarray(np.tile(t < length, (B, 1)), jnp.int32)
        alone = both(path, packed(inside, jnp.asarray(np.tile(t, (B, 1)), jnp.int32)), *map(moved, arrays))
        near(path, [x[:, :length] for x in alone], [x[:, rows] for x in together])


def test_query_heads_that_share_keys_are_heads_with_keys_of_their_own(path):
    q, k, v, d_out, d_lse = given(path, 3)
    ranges = some_ranges("random", 3, B=B, T=T, S=T)
    out, lse, d_q, d_k, d_v = both(path, ranges, q, k, v, d_out, d_lse)
    own = both(path, ranges, q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), d_out, d_lse)
    near(path, [out, lse, d_q], own[:3])
    near(path, [d_k, d_v], [x.sum(2, keepdims=True) for x in own[3:]], times=2.0)


def test_keys_in_parts_merged_by_their_log_sum_exp_are_the_whole(path):
    q, k, v, d_out, d_lse = given(path, 4)
    ranges = causal(B, T, window=50)
    whole = both(path, ranges, q, k, v, d_out, d_lse)
    bounds = [(0, 10), (10, 61), (61, 70)]
    parts = [
        both(path, KeyRanges(jnp.maximum(ranges.start_BT, lo), jnp.minimum(ranges.end_BT, hi)), q, k, v, d_out, d_lse)[:2]
        for lo, hi in bounds
    ]
    outs, lses = (np.stack(x) for x in zip(*parts, strict=True))
    lses = np.where(lses == 0.0, -1e30, lses)
    peak = lses.max(0)
    weights = np.exp(lses - peak)
    near(path, [(outs * weights[..., None]).sum(0) / weights.sum(0)[..., None]], whole[:1])
    near(path, [peak + np.log(weights.sum(0))], whole[1:2])


def test_two_runs_give_equal_bits(path):
    arrays, ranges = given(path, 5), some_ranges("random", 5, B=B, T=T, S=T)
    for first, second in zip(both(path, ranges, *arrays), both(path, ranges, *arrays), strict=True):
        np.testing.assert_array_equal(first, second)


def test_one_query_over_a_cache_is_the_last_row_of_a_prefill(path):
    """Where a cache is whole pages, a kernel of its own computes it."""
    S = 128
    q, k, v, d_out, d_lse = given(path, 6, T=S, S=S)
    filled = 100
    prefill = both(path, causal(B, S), q, k, v, d_out, d_lse)
    one = KeyRanges(jnp.zeros((B, 1), jnp.int32), jnp.full((B, 1), filled, jnp.int32))
    # A function of its own: of `attention` itself jax would take what it has traced on another path.
    found = jax.block_until_ready(jax.jit(functools.partial(attention))(q[:, filled - 1 : filled], k, v, one))
    near(path, [np.asarray(x, np.float64)[:, 0] for x in found[:2]], [x[:, filled - 1] for x in prefill[:2]])
