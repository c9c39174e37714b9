"""The product with a weight against einsum and its derivatives, and that nothing is copied for them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import MeshConfig
from jaxlm.parallel import make_mesh
from jaxlm.parallel.products import product, suits
from jaxlm.parallel.rules import PRESETS

SIZES = {"B": 2, "T": 3, "D": 4, "F": 6, "N": 2, "H": 3, "K": 3}
EQUATIONS = ["BTD,DF->BTF", "BTF,FD->BTD", "BTD,DNH->BTNH", "BTD,DKH->BTKH", "BTNH,NHD->BTD"]


def operands(equation):
    letters = equation.split("->")[0].split(",")
    keys = jax.random.split(jax.random.key(0), 2)
    return [jax.random.normal(key, [SIZES[a] for a in of]) for key, of in zip(keys, letters, strict=True)]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients_are_those_of_einsum(equation):
    x, weight = operands(equation)
    assert suits(x, weight, equation)

    def both(function):
        return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), (0, 1))(x, weight)

    ours, plain = both(lambda x, w: product(None, x, w)), both(lambda x, w: jnp.einsum(equation, x, w))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_mesh_of_one_device_gives_the_same(equation):
    x, weight = operands(equation)
    rules = PRESETS["single"]
    of_x = equation.split(",")[0]
    expected = jax.grad(lambda x, w: jnp.sum(jnp.sin(jnp.einsum(equation, x, w))), (0, 1))(x, weight)
    with jax.set_mesh(make_mesh(MeshConfig())):
        laid = jax.device_put(x, rules.activation(of_x))
        whole = jax.device_put(weight, jax.P())
        found = jax.grad(lambda x, w: jnp.sum(jnp.sin(rules.einsum(equation, x, w))), (0, 1))(laid, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_what_positions_do_not_lead_or_a_weight_shares_is_left_to_einsum():
    x = jnp.ones((2, 3, 4))
    assert not suits(x, jnp.ones((2, 4, 5)), "BTD,BDF->BTF")
    assert not suits(jnp.ones((3, 4)), jnp.ones((4, 5)), "TD,DF->TF")


def test_a_weight_in_another_order_is_left_to_einsum_also_where_it_is_square():
    x, weight = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 3, 4), (4, 4)]))
    assert not suits(x, weight, "BTD,VD->BTV")
    rules = PRESETS["single"]
    ours, plain = (
        jax.grad(lambda w, f=f: jnp.sum(jnp.sin(f("BTD,VD->BTV", x, w))))(weight) for f in (rules.einsum, jnp.einsum)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_nothing_but_narrow_activations_is_transposed_or_copied_for_a_product_and_its_gradients(equation):
    """Read from the program that the compiler makes; where it sums over two axes it copies an operand. Activations that are
    narrower than the gradients are turned for the gradient of the weight, [R, X] to [X, R], and nothing else is."""
    x, weight = operands(equation)

    def all_three(x, weight, cotangent):
        out, gradients = jax.vjp(functools.partial(product, None), x, weight)
        return out, gradients(cotangent)

    out = product(None, x, weight)
    text = jax.jit(all_three).lower(x, weight, jnp.ones_like(out)).compile().as_text()
    assert "dot" in text
    rows, width = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    turned = {f"{width},{rows}"} if width <= math.prod(out.shape[2:]) else set()
    assert set(re.findall(r"= f32\[([^]]*)\]\S* (?:transpose|copy)\(", text)) <= turned
