"""Policies and the state of dynamic loss scaling."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxlm.config.schema import TrainConfig
from jaxlm.model import POLICIES, LossScale, ModelConfig, Policy, abstract_params, forward

FLOAT16 = POLICIES["float16"]
step = jax.jit(lambda state, finite: state.next(finite, FLOAT16))


def after(state, finite, times=1):
    for _ in range(times):
        state = step(state, jnp.asarray(finite))
    return float(state.scale), int(state.good_steps), state


def test_every_precision_of_the_config_has_a_policy_that_keeps_logits_in_float32():
    for name, policy in POLICIES.items():
        assert TrainConfig(precision=name).precision == name
        assert policy == Policy(compute=name)
        assert policy.logits == "float32"
    assert [name for name, policy in POLICIES.items() if policy.scales_loss] == ["float16"]


def test_the_scale_starts_at_two_to_the_fifteenth_and_halves_at_once():
    state = LossScale.create(FLOAT16)
    assert after(state, True)[:2] == (2.0**15, 1)
    assert after(after(state, True)[2], False)[:2] == (2.0**14, 0)
    assert after(state, False, times=3)[:2] == (2.0**12, 0)


def test_the_scale_doubles_after_a_period_of_finite_steps_and_counts_anew():
    state = dataclasses.replace(LossScale.create(FLOAT16), good_steps=jnp.int32(LossScale.PERIOD - 2))
    scale, good, state = after(state, True)
    assert (scale, good) == (2.0**15, LossScale.PERIOD - 1)
    assert after(state, True)[:2] == (2.0**16, 0)
    assert after(state, False)[:2] == (2.0**14, 0)


def test_the_scale_never_falls_below_its_floor():
    state = dataclasses.replace(LossScale.create(FLOAT16), scale=jnp.float32(2.0))
    assert after(state, False, times=5)[:2] == (LossScale.FLOOR, 0)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_without_float16_the_scale_is_one_and_stays(name):
    state = LossScale.create(POLICIES[name])
    assert float(state.scale) == 1.0
    assert state.next(jnp.asarray(False), POLICIES[name]) is state


def products(jaxpr):
    """Every matrix product of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", POLICIES)
def test_float32_is_float32_in_every_matrix_product_forward_and_backward(name):
    cfg = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=40, context_length=8)
    params = abstract_params(cfg)
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    loss = jax.grad(lambda p, ids: forward(p, ids, cfg, policy=POLICIES[name]).sum())
    found = list(products(jax.make_jaxpr(loss)(params, ids).jaxpr))
    assert len(found) > 3 * 9
    for equation in found:
        operands = {str(variable.aval.dtype) for variable in equation.invars}
        highest = equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
        assert highest or operands != {"float32"}, equation
