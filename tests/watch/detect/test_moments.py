"""Moments that are lost in a run are found in that step; no gradient makes the same of moments that are kept."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.optim import optimizer_of
from jaxlm.watch import leaf_norms
from jaxlm.watch.detect import BUDGETS, Expected, expected_of
from jaxlm.watch.detect.moments import moments, observe

SHAPES = {"embed": (64, 16), "blocks": {name: (3, 16, 16) for name in ("wq", "wk", "wo", "w_up")}, "final_norm": (64,)}
STEPS, ONSET = 160, 120


def records(optim, scale=lambda step: 1.0, mean=0.0, lost=None):
    """Steps of the real optimizer on noise of another size in every leaf. lost: the step before which moments are set to 0."""
    optimizer, rng = optimizer_of(optim, STEPS), np.random.default_rng(0)
    params = jax.tree.map(lambda shape: jnp.full(shape, 0.05), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    always = jax.tree.map(lambda p: mean * rng.standard_normal(p.shape, np.float32), params)
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params):
        total = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        updates, state = optimizer.update(grads, state, params)
        return leaf_norms(grads), total, leaf_norms(updates), jax.tree.map(jnp.add, params, updates), state

    for step in range(1, STEPS + 1):
        if step == lost:
            adam = state[-1]
            zero = {name: jax.tree.map(jnp.zeros_like, getattr(adam, name)) for name in ("mu", "nu")}
            state = (*state[:-1], dataclasses.replace(adam, **zero))
        noise = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)
        grads = jax.tree.map(lambda a, g, s=scale(step): np.float32(s * 1e-3) * (a + g), always, noise)
        grad_norms, total, moved, params, state = update(grads, state, params)
        yield {
            "step": step,
            "lr": float(optim.lr),
            "finite": True,
            "grad_norm": float(total),
            "grad_norms": {name: np.asarray(value).tolist() for name, value in grad_norms.items()},
            "update_norms": {name: np.asarray(value).tolist() for name, value in moved.items()},
        }


def found(optim, **how):
    sizes = {"embed": 1024, "final_norm": 64, **{f"blocks/{name}": 256 for name in SHAPES["blocks"]}}
    known = Expected(sizes=sizes, betas=(optim.b1, optim.b2), clip_norm=optim.clip_norm)
    state, alarms = moments(), []
    for record in records(optim, **how):
        state, more = observe(state, record, known)
        alarms += [(alarm.step, alarm.detector) for alarm in more]
    return alarms


def adam(**fields):
    return OptimConfig(**{"lr": 1e-3, "schedule": "constant", "warmup_steps": 0, **fields})


@pytest.mark.parametrize(
    "fields", [{}, {"clip_norm": 0.01}, {"b2": 0.98}, {"b1": 0.8}, {"weight_decay": 0.0, "clip_norm": 0.0}]
)
def test_moments_that_are_lost_are_found_in_that_step(fields):
    assert found(adam(**fields), lost=ONSET) == [(ONSET, "moments_lost")]
    fields = fields | {"weight_decay": 0.0}  # which a gradient that stays so long makes a part of the update
    assert found(adam(**fields), lost=ONSET, mean=1.0) == [(ONSET, "moments_lost")]


QUIET = {
    "noise": {},
    "a gradient that hardly changes": {"mean": 10.0},
    "one whose share is that of lost moments": {"mean": 0.5},
    "the start of a run": {"lost": 2},
    "a spike": {"scale": lambda step: 30.0 if step == ONSET else 1.0},
    "a gradient that stays larger": {"scale": lambda step: 30.0 if step >= ONSET else 1.0},
    "one that stays smaller": {"scale": lambda step: 1 / 30 if step >= ONSET else 1.0},
}


@pytest.mark.parametrize("clip", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", QUIET)
def test_what_keeps_its_moments_is_silent(name, clip):
    assert found(adam(clip_norm=clip), **QUIET[name]) == []


def test_after_a_storm_that_was_clipped_gradients_are_loud_again():
    """One parameter's storm makes the others small by clipping; when it is over they outweigh their moments."""
    optim, alarms, state = adam(clip_norm=0.05), [], moments()
    known = Expected(sizes={"w": 256, **{f"v{i}": 256 for i in range(7)}}, betas=(0.9, 0.95), clip_norm=0.05)
    optimizer, rng = optimizer_of(optim, STEPS), np.random.default_rng(0)
    params = {name: jnp.full((256,), 0.05) for name in known.sizes}
    inner = optimizer.init(params)
    for step in range(1, STEPS + 1):
        storm = 1e3 if 60 <= step < ONSET else 1.0
        grads = {n: np.float32((storm if n == "w" else 1.0) * 1e-3) * rng.standard_normal(256, np.float32) for n in params}
        updates, inner = optimizer.update(grads, inner, params)
        norm = {name: float(np.linalg.norm(g)) for name, g in grads.items()}
        total = math.sqrt(sum(value**2 for value in norm.values()))
        moved = {name: float(np.linalg.norm(u)) for name, u in updates.items()}
        record = {"step": step, "lr": 1e-3, "finite": True, "grad_norm": total, "grad_norms": norm, "update_norms": moved}
        state, more = observe(state, record, known)
        alarms += more
    assert alarms == []


def test_betas_that_make_the_same_share_of_noise_are_not_judged():
    assert found(adam(b1=0.9, b2=0.81), lost=ONSET) == []


def test_what_a_config_says_reaches_the_detector():
    known = expected_of(RunConfig(model=ModelConfig(vocab_size=300), optim=adam(clip_norm=0.5), train=TrainConfig(steps=10)))
    assert known.clip_norm == 0.5
    assert BUDGETS["moments_lost"].alarms == 0.01
