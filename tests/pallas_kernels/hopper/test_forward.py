"""The forward kernel in the interpreter against float64: every mask from one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels import attention_float64, causal
from pallas_kernels.hopper import Blocks, tiling_for, warpgroup
from pallas_kernels.hopper.forward import forward
from pallas_kernels.ranges import key_tiles

B, T, S, N, K = 1, 203, 270, 2, 1  # two blocks of queries, the last not full; five tiles of keys
SMALL = Blocks(64, 64, 2)


@pytest.fixture
def kernel(compiled):
    def kernel(H, dtype, softcap, statistics=True, blocks=None):
        tiling = tiling_for(H, dtype, S)
        tiling = dataclasses.replace(tiling, forward=blocks or tiling.forward)
        options = {"scale": H**-0.5, "softcap": softcap, "tiling": tiling, "statistics": statistics}
        return compiled(forward, **options, interpret=True)

    return kernel


def check(found, x, ranges, softcap, plain, as_near_as):
    exact = attention_float64(x.q, x.k, x.v, *(np.asarray(a) for a in ranges), softcap)
    assert found[0].dtype == x.v.dtype
    as_near_as(found[0], exact.out_BTNH, plain(x, ranges, softcap)[0], softcap)
    for ours, theirs in zip(found[1:], exact[1:], strict=False):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


MASKS = ["causal", "window", "packed", "everything", "apart", "random"]


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_that_of_float64(mask, kernel, inputs, masks, plain, as_near_as):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)[mask]
    found = kernel(64, jnp.bfloat16, 0.0, blocks=SMALL)(*x[:3], *ranges)
    check(found, x, ranges, 0.0, plain, as_near_as)


def test_queries_that_see_nothing_get_what_a_query_of_no_keys_gets(kernel, inputs, masks):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)["nothing"]
    found = kernel(64, jnp.bfloat16, 0.0, blocks=SMALL)(*x[:3], *ranges)
    assert [set(np.asarray(a, np.float32).ravel().tolist()) for a in found] == [
        {0.0},
        {np.float32(-1e30)},
        {np.float32(-1e30)},
        {0.0},
    ]


def test_two_runs_are_equal_bit_by_bit(kernel, inputs, masks):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)["random"]
    run = kernel(64, jnp.bfloat16, 0.0, blocks=SMALL)
    for first, second in zip(run(*x[:3], *ranges), run(*x[:3], *ranges), strict=True):
        assert np.array_equal(first, second)


def test_scores_that_are_large_do_not_overflow(kernel, inputs, masks, plain, as_near_as):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16, size=30.0), masks(B, T, S)["causal"]
    found = kernel(64, jnp.bfloat16, 0.0, blocks=SMALL)(*x[:3], *ranges)
    exact = attention_float64(x.q, x.k, x.v, *(np.asarray(a) for a in ranges))
    assert np.abs(exact.peak_BTN).max() > 1000
    as_near_as(found[0], exact.out_BTNH, plain(x, ranges)[0])


@pytest.mark.parametrize(
    ("H", "dtype", "softcap", "statistics"),
    [
        (64, jnp.float16, 5.0, False),
        (128, jnp.bfloat16, 0.0, True),
        pytest.param(128, jnp.float16, 20.0, True, marks=pytest.mark.slow),
        pytest.param(256, jnp.bfloat16, 0.0, False, marks=pytest.mark.slow),
    ],
)
def test_every_width_is_that_of_float64(H, dtype, softcap, statistics, kernel, inputs, masks, plain, as_near_as):
    x = inputs(2, 140, 199, 4, 2, H, dtype)
    for mask in ("causal", "random"):
        ranges = masks(2, 140, 199)[mask]
        found = kernel(H, dtype, softcap, statistics)(*x[:3], *ranges)
        assert len(found) == (4 if statistics else 2)
        check(found, x, ranges, softcap, plain, as_near_as)


def test_a_block_walks_from_the_first_tile_that_one_of_its_warpgroups_meets_to_the_last():
    ranges = causal(1, 512, window=100)
    plan = np.asarray(warpgroup.walks(key_tiles(ranges, 512, queries_per_tile=64, keys_per_tile=64), 2))
    for block, rows in enumerate(plan[0]):
        first, end = 128 * block, 128 * block + 128
        assert set(rows[:, 0]) == {max(first - 99, 0) // 64}
        assert set(rows[:, 5]) == {-(-end // 64)}
