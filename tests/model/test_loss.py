"""The loss against NumPy float64: sums, counts, masked labels, extreme logits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.model import loss_sums, token_nll

B, T, V = 2, 5, 11


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((B, T, V))).astype(np.float32)
    return logits, rng.integers(0, V, (B, T), dtype=np.int32), rng.random((B, T)) < 0.6


def expected_of(logits, labels):
    """nll and log-sum-exp of every label, in float64."""
    wide = np.asarray(logits, np.float64)
    peak = wide.max(-1)
    lse = peak + np.log(np.exp(wide - peak[..., None]).sum(-1))
    return lse - np.take_along_axis(wide, labels[..., None], -1)[..., 0], lse


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))
def test_sums_and_counts_equal_float64(seed, scale):
    logits, labels, mask = drawn(seed, scale)
    nll, lse = expected_of(logits, labels)
    with jax.numpy_dtype_promotion("strict"):
        found, found_lse = token_nll(logits, labels)
        sums = loss_sums(logits, labels, mask)
    size = max(1.0, np.abs(logits).max())
    np.testing.assert_allclose(found, nll, rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(found_lse, lse, rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(sums.nll, nll[mask].sum(), rtol=1e-5, atol=1e-5 * size)
    np.testing.assert_allclose(sums.z, (lse[mask] ** 2).sum(), rtol=1e-5, atol=1e-5 * size)
    assert float(sums.count) == mask.sum()
    assert {x.dtype.name for x in (found, found_lse, *jax.tree.leaves(sums))} == {"float32"}


@pytest.mark.parametrize("right", [True, False])
def test_logits_of_ten_thousand_give_the_exact_distance(right):
    logits = np.full((1, 1, 4), -1e4, np.float32)
    logits[0, 0, 2] = 1e4
    labels = np.array([[2 if right else 0]], np.int32)
    value, grad = jax.value_and_grad(lambda x: loss_sums(x, labels, np.ones((1, 1), bool)).nll)(jnp.asarray(logits))
    assert float(value) == (0.0 if right else 2e4)
    np.testing.assert_array_equal(grad[0, 0], np.zeros(4) if right else [-1, 0, 1, 0])


def test_the_gradient_is_softmax_minus_label_and_that_of_z_twice_the_lse():
    logits, labels, mask = drawn(3)
    _, lse = expected_of(logits, labels)
    softmax = np.exp(np.asarray(logits, np.float64) - lse[..., None])
    nll_grad, z_grad = (
        jax.grad(lambda x, name=name: getattr(loss_sums(x, labels, mask), name))(jnp.asarray(logits)) for name in ("nll", "z")
    )
    np.testing.assert_allclose(nll_grad, np.where(mask[..., None], softmax - np.eye(V)[labels], 0), atol=1e-6)
    np.testing.assert_allclose(z_grad, np.where(mask[..., None], 2 * lse[..., None] * softmax, 0), atol=1e-5)


def test_an_unsupervised_position_adds_exactly_nothing_and_gets_exactly_no_gradient():
    logits, labels, mask = drawn(4)

    def both(logits, labels):
        sums = loss_sums(logits, labels, mask)
        return sums.nll + sums.z, sums

    grads, sums = jax.grad(both, has_aux=True)(jnp.asarray(logits), labels)
    assert (np.asarray(grads)[~mask] == 0.0).all()
    assert (np.asarray(grads)[mask] != 0.0).all()
    other_logits = np.where(mask[..., None], logits, np.float32(1e4) * logits[::-1])
    moved, moved_sums = jax.grad(both, has_aux=True)(jnp.asarray(other_logits), np.where(mask, labels, 0))
    np.testing.assert_array_equal(grads, moved)
    jax.tree.map(np.testing.assert_array_equal, sums, moved_sums)


def test_no_supervised_label_is_a_sum_of_zero_and_a_count_of_zero():
    logits, labels, _ = drawn(5)
    assert [float(x) for x in jax.tree.leaves(loss_sums(logits, labels, np.zeros((B, T), bool)))] == [0.0] * 4


def test_sums_of_parts_add_up_to_the_sum_of_the_whole():
    logits, labels, mask = drawn(6)
    whole = loss_sums(logits, labels, mask)
    parts = jax.tree.map(jnp.add, *(loss_sums(logits[i : i + 1], labels[i : i + 1], mask[i : i + 1]) for i in range(B)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, parts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, labels, mask = drawn(7)
    rounded = jnp.asarray(logits, dtype)
    nll, _ = expected_of(np.asarray(rounded, np.float64), labels)
    np.testing.assert_allclose(loss_sums(rounded, labels, mask).nll, nll[mask].sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels"), [((2, 5, 11), (2, 4)), ((2, 5), (2, 5)), ((2, 5, 11), (10,)), ((5, 2, 11), (2, 5))]
)
def test_labels_that_do_not_fit_the_logits_are_refused(logits, labels):
    with pytest.raises(ValueError, match="expected shape"):
        loss_sums(jnp.zeros(logits), jnp.zeros(labels, jnp.int32), jnp.ones(labels, bool))
