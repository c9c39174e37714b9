"""The kernels for TPUs, interpreted: against float64, one program for all masks, any length, equal bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KeyRanges, attention_float64, attention_reference, tpu
from pallas_kernels.reference import MASKED
from tests.pallas_kernels.operands import (
    KINDS,
    exact_forward,
    exact_gradients,
    operands,
    require_near,
    some_ranges,
    unfused_gradients,
)

TILING = tpu.Tiling(16, 16, 16, 16)
CASES = [(jnp.float32, 0.0), (jnp.float32, 1.5), (jnp.bfloat16, 0.0)]


@functools.partial(jax.jit, static_argnames=("softcap", "tiling"))
def forward(q, k, v, ranges, *, softcap=0.0, tiling=TILING):
    return tpu.forward(q, k, v, ranges, scale=q.shape[-1] ** -0.5, softcap=softcap, tiling=tiling, interpret=True)


@functools.partial(jax.jit, static_argnames=("softcap", "tiling"))
def gradients(q, k, v, ranges, out, lse, d_out, d_lse, *, softcap=0.0, tiling=TILING):
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    options = {"scale": q.shape[-1] ** -0.5, "softcap": softcap, "tiling": tiling, "interpret": True}
    return tpu.backward(q, k, v, ranges, lse, delta, d_out, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "softcap"), CASES)
def test_values_and_gradients_are_those_of_float64(dtype, softcap, kind):
    q, k, v, d_out, d_lse = operands(len(kind), dtype=dtype)
    T = q.shape[1]
    ranges = some_ranges(kind, seed=3, T=T, S=k.shape[1])
    out, lse, peak, mean = forward(q, k, v, ranges, softcap=softcap)
    exact = exact_forward(q, k, v, ranges, softcap)
    require_near(out, exact.out_BTNH, attention_reference(q, k, v, ranges, softcap=softcap)[0], softcap=softcap)
    for ours, theirs in zip((lse, peak, mean), exact[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    blind = np.asarray(ranges.start_BT >= jnp.minimum(ranges.end_BT, k.shape[1])) | np.asarray(ranges.end_BT <= 0)
    assert not np.asarray(out, np.float32)[blind].any()
    assert (np.asarray(lse)[blind] == np.float32(MASKED)).all()

    expected = exact_gradients(q, k, v, ranges, d_out, d_lse, softcap)
    plain = unfused_gradients(q, k, v, d_out, d_lse, ranges, softcap)
    found = gradients(q, k, v, ranges, out, lse, d_out, d_lse, softcap=softcap)
    for ours, theirs, unfused in zip(found, expected, plain, strict=True):
        require_near(ours, theirs, unfused, softcap=softcap)
    assert not np.asarray(found[0], np.float32)[blind].any()


def test_one_program_serves_many_masks():
    q, k, v, *_ = operands(1)
    forward(q, k, v, some_ranges("full"))
    programs = forward._cache_size()
    for seed in range(40):
        ranges = some_ranges("random", seed)
        exact = exact_forward(q, k, v, ranges, 0.0)
        np.testing.assert_allclose(forward(q, k, v, ranges)[0], exact.out_BTNH, rtol=1e-5, atol=1e-5)
    assert forward._cache_size() == programs


def test_two_runs_give_equal_bits():
    q, k, v, d_out, d_lse = operands(2)
    ranges = some_ranges("random", 5)
    found = [forward(q, k, v, ranges) for _ in range(2)]
    twice = [gradients(q, k, v, ranges, *found[0][:2], d_out, d_lse) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    jax.tree.map(np.testing.assert_array_equal, *twice)


def test_keys_in_parts_merged_by_their_log_sum_exp_are_the_whole():
    q, k, v, *_ = operands(3, S=48)
    ranges = some_ranges("random", 6, S=48)
    whole = forward(q, k, v, ranges)
    parts = []
    for first in (0, 24):
        local = KeyRanges(*(jnp.clip(x - first, 0, 24).astype(jnp.int32) for x in ranges))
        parts.append(forward(q, k[:, first : first + 24], v[:, first : first + 24], local))
    lse = jnp.logaddexp(parts[0][1], parts[1][1])
    out = sum(part[0] * jnp.exp(part[1] - lse)[..., None] for part in parts)
    np.testing.assert_allclose(out, whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, whole[1], rtol=1e-5, atol=1e-5)


# ---- decode ----------------------------------------------------------------------------------------------------------

B, N, K, H, P, S, M = 3, 6, 2, 16, 12, 4, 5


def cache(seed):
    """Queries, pages, which page holds which block, and first and last position."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((B, N, H)).astype(np.float32)
    k, v = (rng.standard_normal((P, S, K, H)).astype(np.float32) for _ in range(2))
    blocks = np.stack([rng.permutation(P)[:M] for _ in range(B)]).astype(np.int32)
    return q, k, v, blocks, np.array([0, 3, 5], np.int32), np.array([17, 20, 5], np.int32)


@functools.partial(jax.jit, static_argnames=("softcap",))
def decode(q, k, v, blocks, start, end, *, softcap=0.0):
    return tpu.decode(q, k, v, blocks, start, end, scale=H**-0.5, softcap=softcap, interpret=True)


def dense(pages, blocks):
    return pages[blocks].reshape(B, M * S, K, H)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_decode_is_the_row_of_a_query_over_its_pages_in_order(softcap):
    q, k, v, blocks, start, end = cache(0)
    out, lse = decode(q, k, v, blocks, start, end, softcap=softcap)
    exact = attention_float64(q[:, None], dense(k, blocks), dense(v, blocks), start[:, None], end[:, None], softcap)
    np.testing.assert_allclose(out, exact.out_BTNH[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, exact.lse_BTN[:, 0], rtol=1e-5, atol=1e-5)
    assert not np.asarray(out)[2].any()  # sees nothing


def test_where_a_page_lies_changes_no_bit():
    q, k, v, blocks, start, end = cache(1)
    moved = np.random.default_rng(2).permutation(P)
    again = decode(q, k[np.argsort(moved)], v[np.argsort(moved)], moved[blocks].astype(np.int32), start, end)
    jax.tree.map(np.testing.assert_array_equal, decode(q, k, v, blocks, start, end), again)


def test_what_pages_hold_outside_of_the_range_is_not_read_into_a_result():
    q, k, v, blocks, start, end = cache(3)
    expected = decode(q, k, v, blocks, start, end)
    used = np.zeros((P, S), bool)
    for b in range(B):
        for s in range(start[b], end[b]):
            used[blocks[b, s // S], s % S] = True
    for poison in (np.nan, np.inf):
        bad = [np.where(used[:, :, None, None], x, np.float32(poison)) for x in (k, v)]
        jax.tree.map(np.testing.assert_array_equal, decode(q, *bad, blocks, start, end), expected)
