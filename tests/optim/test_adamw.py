"""AdamW, clipping and schedules against optax; AdamW against the paper's algorithm in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.config.schema import OptimConfig
from jaxlm.optim import (
    adamw,
    clip_by_global_norm,
    constant_schedule,
    cosine_schedule,
    decay_mask,
    global_norm,
    linear_schedule,
    optimizer_of,
    schedule_of,
    updates_made,
    wsd_schedule,
)


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "bias": (4,), "embed": (5, 3), "final_norm": (3,)}
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def gradients(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_equals_optax(tree, decay):
    rate = cosine_schedule(0.1, 20, 5)
    options = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay)
    ours, theirs = adamw(rate, **options), optax.adamw(rate, **options, mask=decay_mask)
    a, b = tree, tree
    state_a, state_b = ours.init(tree), theirs.init(tree)
    for step in range(12):
        grads = gradients(tree, step)
        updates, state_a = ours.update(grads, state_a, a)
        a = optax.apply_updates(a, updates)
        updates, state_b = theirs.update(grads, state_b, b)
        b = optax.apply_updates(b, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


def test_adamw_equals_the_algorithm_in_float64():
    rng = np.random.default_rng(1)
    p = rng.standard_normal((6,))
    ours = adamw(0.01, 0.9, 0.95, 1e-8, 0.1, mask=None)
    params, state = jnp.asarray(p, jnp.float32), None
    state = ours.init(params)
    m = v = np.zeros(6)
    for t in range(1, 8):
        g = rng.standard_normal(6)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        p = p - 0.01 * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * p)
        updates, state = ours.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, p, rtol=1e-5)
    assert int(state.count) == 7


def test_decay_leaves_norms_biases_and_embeddings_alone(tree):
    assert decay_mask(tree) == {"w": True, "bias": False, "embed": False, "final_norm": False}
    ours = adamw(0.1, weight_decay=0.5)
    updates, _ = ours.update(jax.tree.map(jnp.zeros_like, tree), ours.init(tree), tree)
    moved = {name for name, update in updates.items() if (np.asarray(update) != 0).any()}
    assert moved == {"w"}
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * tree["w"], rtol=1e-6)


def test_adamw_without_parameters_is_refused(tree):
    with pytest.raises(ValueError, match="expected the parameters"):
        adamw(0.1).update(tree, adamw(0.1).init(tree))


def test_what_is_not_applied_leaves_moments_and_count_bit_by_bit(tree):
    ours = optimizer_of(OptimConfig(warmup_steps=1, clip_norm=1.0), 10)
    _, state = ours.update(gradients(tree, 0), ours.init(tree), tree)
    state = jax.tree.map(lambda x: x.at[0].set(-0.0) if x.ndim else x, state)
    poisoned = jax.tree.map(lambda x: x * jnp.nan, tree)
    _, held = ours.update(poisoned, state, tree, applied=jnp.bool_(False))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).view(np.int32), np.asarray(b).view(np.int32)), state, held
    )
    _, moved = ours.update(gradients(tree, 1), state, tree, applied=jnp.bool_(True))
    _, plain = ours.update(gradients(tree, 1), state, tree)
    jax.tree.map(np.testing.assert_array_equal, moved, plain)
    assert updates_made(moved) == updates_made(held) + 1 == 2


def test_a_norm_that_is_known_is_the_one_that_is_clipped_by(tree):
    clipped, _ = clip_by_global_norm(1.0).update(tree, optax.EmptyState(), norm=jnp.float32(4.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 4, rtol=1e-6), clipped, tree)


@pytest.mark.parametrize("largest", [0.1, 1e3])
def test_clipping_equals_optax(tree, largest):
    ours, theirs = clip_by_global_norm(largest), optax.clip_by_global_norm(largest)
    a, b = ours.update(tree, ours.init(tree))[0], theirs.update(tree, theirs.init(tree))[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    np.testing.assert_allclose(global_norm(tree), optax.global_norm(tree), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_hides_nothing(tree, bad):
    poisoned = {**tree, "bias": tree["bias"].at[0].set(bad)}
    clipped, _ = clip_by_global_norm(1.0).update(poisoned, optax.EmptyState())
    assert all(np.isnan(np.asarray(leaf)).all() for leaf in clipped.values())


def test_clipping_refuses_a_norm_that_is_none():
    with pytest.raises(ValueError, match="> 0"):
        clip_by_global_norm(0.0)


COUNTS = np.arange(0, 140)


def test_cosine_equals_optax():
    ours = cosine_schedule(0.3, 100, 10, end_value=0.03)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 100, 0.03)
    np.testing.assert_allclose([ours(c) for c in COUNTS], [theirs(c) for c in COUNTS], rtol=1e-5, atol=1e-7)


def test_linear_equals_optax():
    ours = linear_schedule(0.3, 100, 10, end_value=0.03)
    pieces = [optax.linear_schedule(0.0, 0.3, 10), optax.linear_schedule(0.3, 0.03, 90)]
    theirs = optax.join_schedules(pieces, [10])
    np.testing.assert_allclose([ours(c) for c in COUNTS], [theirs(c) for c in COUNTS], rtol=1e-5, atol=1e-7)


def test_wsd_holds_then_falls():
    ours = wsd_schedule(0.3, 100, 10, decay_share=0.25, end_value=0.03)
    pieces = [optax.linear_schedule(0.0, 0.3, 10), optax.constant_schedule(0.3), optax.linear_schedule(0.3, 0.03, 25)]
    theirs = optax.join_schedules(pieces, [10, 75])
    np.testing.assert_allclose([ours(c) for c in COUNTS], [theirs(c) for c in COUNTS], rtol=1e-5, atol=1e-7)


def test_constant_after_the_warm_up():
    assert [float(constant_schedule(0.5, 4)(c)) for c in (0, 2, 4, 1000)] == [0.0, 0.25, 0.5, 0.5]
    assert float(constant_schedule(0.5)(0)) == 0.5


@pytest.mark.parametrize("make", [cosine_schedule, linear_schedule, wsd_schedule])
def test_a_warm_up_longer_than_the_run_is_refused(make):
    with pytest.raises(ValueError, match="warmup_steps"):
        make(0.1, 10, 11)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_the_first_update_has_a_rate_and_the_last_the_least(name):
    cfg = OptimConfig(lr=0.2, schedule=name, warmup_steps=10, min_lr_ratio=0.1)
    rate = schedule_of(cfg, 50)
    assert float(rate(0)) == pytest.approx(0.02)
    assert float(rate(9)) == pytest.approx(0.2)
    assert float(rate(49)) == pytest.approx(0.2 if name == "constant" else 0.02)


def test_the_optimizer_of_a_config_clips_first(tree):
    cfg = OptimConfig(clip_norm=1.0, warmup_steps=0, schedule="constant", weight_decay=0.0, b1=0.0)
    ours = optimizer_of(cfg, 10)
    _, state = ours.update(jax.tree.map(lambda g: 1e6 * g, tree), ours.init(tree), tree)
    assert updates_made(state) == 1
    np.testing.assert_allclose(optax.global_norm(state[-1].mu), 1.0, rtol=1e-5)
    assert len(optimizer_of(OptimConfig(clip_norm=0.0, warmup_steps=0), 10).init(tree)) == 1
