"""The backward kernels in the interpreter against float64: every gradient, through both results, under every mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels import attention_float64
from pallas_kernels.hopper import Blocks, Tiling, tiling_for
from pallas_kernels.hopper.backward import backward

B, T, S, N, K = 1, 139, 197, 2, 1  # tiles that are not full; two blocks of queries and two of keys
SMALL = Tiling(Blocks(64, 64, 2), Blocks(64, 64, 2), Blocks(64, 64, 2))


@pytest.fixture
def gradients(compiled):
    def gradients(x, ranges, softcap, tiling):
        exact = attention_float64(x.q, x.k, x.v, *(np.asarray(a) for a in ranges), softcap)
        # No error of the forward pass: what is measured is the backward one.
        lse = jnp.asarray(exact.lse_BTN, jnp.float32)
        delta = jnp.asarray((exact.out_BTNH * np.asarray(x.d_out, np.float64)).sum(-1) - x.d_lse, jnp.float32)
        run = compiled(backward, scale=x.q.shape[-1] ** -0.5, softcap=softcap, tiling=tiling, interpret=True)
        return run(x.q, x.k, x.v, *ranges, lse, delta, x.d_out)

    return gradients


@pytest.fixture
def check(gradients, gradients_float64, plain, as_near_as):
    def check(x, ranges, softcap, tiling):
        found = gradients(x, ranges, softcap, tiling)
        for ours, exact, theirs in zip(found, gradients_float64(x, ranges, softcap), plain(x, ranges, softcap)[1], strict=True):
            assert ours.dtype == x.q.dtype
            as_near_as(ours, exact, theirs, softcap)

    return check


MASKS = ["causal", "window", "packed", "everything", "apart", "random"]


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_has_the_gradients_of_float64(mask, inputs, masks, check):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)[mask]
    check(x, ranges, 0.0, SMALL)


def test_keys_that_nothing_sees_have_no_gradient(inputs, masks, gradients):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)["nothing"]
    assert not any(np.asarray(grad, np.float32).any() for grad in gradients(x, ranges, 0.0, SMALL))


def test_two_runs_are_equal_bit_by_bit(inputs, masks, gradients):
    x, ranges = inputs(B, T, S, N, K, 64, jnp.bfloat16), masks(B, T, S)["random"]
    for first, second in zip(gradients(x, ranges, 0.0, SMALL), gradients(x, ranges, 0.0, SMALL), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("H", "dtype", "softcap"),
    [
        (64, jnp.float16, 5.0),
        (128, jnp.bfloat16, 0.0),
        pytest.param(128, jnp.float16, 20.0, marks=pytest.mark.slow),
        pytest.param(256, jnp.bfloat16, 0.0, marks=pytest.mark.slow),
    ],
)
def test_every_width_has_the_gradients_of_float64(H, dtype, softcap, inputs, masks, check):
    x = inputs(2, 70, 130, 4, 2, H, dtype)
    for mask in ("causal", "random"):
        check(x, masks(2, 70, 130)[mask], softcap, tiling_for(H, dtype, 130))
