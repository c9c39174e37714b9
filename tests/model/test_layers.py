"""The parts of a block alone: RMSNorm, rotary positions, caps, activations, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.schema import MeshConfig
from jaxlm.model import reference
from jaxlm.model.layers import ACTIVATIONS, align, dropout, rms_norm, rope_angles, rotate, softcap
from jaxlm.parallel import make_mesh

PAIRINGS = ["half", "interleaved"]


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# ---- RMSNorm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e15])
def test_rms_norm_equals_float64_and_counts_eps(scale):
    x, gain = normal(3, 5, 16, scale=scale), normal(16, seed=1)
    for eps in (1e-6, 0.5):
        expected = reference.normed(np.asarray(x, np.float64), np.asarray(gain, np.float64), eps)
        np.testing.assert_allclose(rms_norm(x, gain, eps=eps), expected, rtol=2e-6, atol=1e-9)


def test_rms_norm_without_a_gain_is_the_identity_and_of_zeros_is_zero():
    x = normal(2, 4)
    assert rms_norm(x, None, eps=1e-6) is x
    assert (np.asarray(rms_norm(jnp.zeros((2, 4)), jnp.ones(4), eps=1e-6)) == 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rms_norm_of_half_precision_is_computed_in_float32(dtype):
    x, gain = normal(4, 64, scale=300.0).astype(dtype), jnp.full((64,), 1.001, jnp.float32)  # squares overflow float16
    out = rms_norm(x, gain, eps=1e-6)
    assert out.dtype == jnp.dtype(dtype)
    expected = reference.normed(np.asarray(x, np.float64), np.asarray(gain, np.float64), 1e-6)
    rounded = jnp.asarray(expected, dtype).astype(jnp.float32)
    assert float(jnp.mean(out.astype(jnp.float32) == rounded)) > 0.98


# ---- rotary positions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
def test_angles_are_exact_at_positions_that_bfloat16_and_float16_cannot_tell_apart(theta):
    positions = np.array([[0, 1, 255, 256, 257, 258, 2047, 2049, 8191]], np.int32)
    angles = positions[0, :, None].astype(np.float64) * theta ** (-np.arange(0, 64, 2) / 64)
    for found, exact in zip(rope_angles(jnp.asarray(positions), 64, theta=theta), (np.cos, np.sin), strict=True):
        assert found.dtype == jnp.float32
        error = np.abs(np.asarray(found[0], np.float64) - exact(angles))
        assert (error <= 1e-7 + 4 * 2.0**-24 * angles).all()


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_rotation_equals_complex_numbers_in_float64_in_every_dtype(pairing):
    x = normal(1, 4, 3, 10)
    positions = np.array([[0, 7, 300, 1001]], np.int32)
    for dtype, tolerance in (("float32", 2e-4), ("bfloat16", 2e-2), ("float16", 3e-3)):
        angles = rope_angles(jnp.asarray(positions), 10, theta=100.0)
        out = rotate(x.astype(dtype), angles, pairing=pairing)
        assert out.dtype == jnp.dtype(dtype)
        expected = [
            reference.rotated(np.asarray(h, np.float64), p, 100.0, pairing) for h, p in zip(x[0], positions[0], strict=True)
        ]
        np.testing.assert_allclose(np.asarray(out[0], np.float64), np.stack(expected), atol=tolerance)


@pytest.mark.parametrize("pairing", PAIRINGS)
@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 500), gap=st.integers(0, 500), shift=st.integers(0, 2000))
def test_rotation_keeps_norms_and_scores_know_only_the_distance(pairing, first, gap, shift):
    q, k = normal(1, 1, 1, 8, seed=2), normal(1, 1, 1, 8, seed=3)

    def turned(x, position):
        return rotate(x, rope_angles(jnp.full((1, 1), position, jnp.int32), 8, theta=50.0), pairing=pairing)

    norm = np.linalg.norm
    np.testing.assert_allclose(norm(turned(q, first + shift)), norm(q), rtol=1e-6)
    near = float(jnp.sum(turned(q, first + gap) * turned(k, first)))
    far = float(jnp.sum(turned(q, first + gap + shift) * turned(k, first + shift)))
    assert near == pytest.approx(far, abs=5e-3)
    np.testing.assert_array_equal(turned(q, 0), q)


# ---- the rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swiglu", "silu", "gelu"])
def test_activations_equal_their_papers(name):
    x = np.linspace(-12, 12, 101)
    exact = {"gelu": reference.gelu, "silu": reference.silu, "swiglu": reference.silu}[name](x)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), exact, rtol=1e-5, atol=1e-6)


def test_softcap_bounds_is_smooth_and_is_off_at_zero():
    x = jnp.asarray([-1e9, -3.0, 0.0, 1e-3, 3.0, 1e9], jnp.float32)
    np.testing.assert_allclose(softcap(x, 5.0), 5 * np.tanh(np.asarray(x, np.float64) / 5), rtol=1e-6)
    assert softcap(x, 0.0) is x


def test_align_writes_the_broadcast_out():
    assert align(jnp.ones(3), jnp.ones((2, 4, 3))).shape == (1, 1, 3)
    assert align(jnp.ones((5, 3)), jnp.ones((2, 4, 5, 3))).shape == (1, 1, 5, 3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate):
    size = 40_000
    out = np.asarray(dropout(jnp.full((size,), 3.0), rate, jax.random.key(1)))
    assert set(np.unique(out)) == {np.float32(0.0), np.float32(np.float32(3.0) / np.float32(1.0 - rate))}
    spread = np.sqrt(rate * (1 - rate) / size)
    assert abs((out == 0).mean() - rate) < 4 * spread


def test_dropout_on_a_mesh_drops_the_same():
    x, key = normal(4, 6, 8), jax.random.key(2)
    mesh = make_mesh(MeshConfig(data=2, tensor=2, rules="tp"))
    with jax.set_mesh(mesh):
        laid_out = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", None, "tensor")))
        out = jax.jit(lambda x: dropout(x, 0.5, key))(laid_out)
    np.testing.assert_array_equal(out, dropout(x, 0.5, key))


def test_dropout_without_a_key_or_a_rate_is_the_identity_and_its_gradient_is_its_mask():
    x = normal(50)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    grad = jax.grad(lambda x: jnp.sum(dropout(x, 0.5, jax.random.key(0))))(x)
    np.testing.assert_array_equal(grad, jnp.where(dropout(x, 0.5, jax.random.key(0)) == 0, 0.0, 2.0))
