"""The product of activations and a weight on one device, with the gradients in the order in which a CPU makes them best.

Left to itself jax writes the gradient of a weight as (gradients x activations), transposed. The compiler then transposes the
gradients of the activations before the product, and makes them anew while it does so, element after element down the columns.
Written as (activations x gradients), with rows and positions as one axis, it is a product of two matrices, for which nothing is
copied. On 2 cores a step of the benchmark's model took 1.55 s with gradients in this order, and 1.83 s without
(docs/bench/2026-11-25-train.md).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import matmul_precision

NAME = "weight_product"  # by which rematerialisation finds the results


def suits(x: jax.Array, weight: jax.Array, equation: str) -> bool:
    """Whether `product` is for these: x has B, T and more, the result B, T and others, and the weight what is more and the
    others, in the order in which its gradient is made; and every array is whole on one device."""
    (of_x, letters), out = equation.split("->")[0].split(","), equation.split("->")[1]
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or (mesh.size == 1 and not any(jax.typeof(a).sharding.spec.reduced for a in (x, weight)))
    return whole and out[:2] == of_x[:2] == "BT" and letters == of_x[2:] + out[2:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(equation: str, layout: Any, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` for an equation that `suits`, "BTD,DF->BTF" say.

    layout: the PartitionSpec of the result under a mesh, None without one.
    """
    return jnp.einsum(equation, x, weight, precision=matmul_precision(x, weight), out_sharding=layout)


def _forward(equation: str, layout: Any, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return product(equation, layout, x, weight), (x, weight)


def _backward(equation: str, layout: Any, kept: tuple, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    (of_x, of_weight), of_out = equation.split("->")[0].split(","), equation.split("->")[1]
    like_x, like_weight = (None if layout is None else jax.typeof(a).sharding.spec for a in kept)

    def matrix(a: jax.Array) -> jax.Array:
        whole = None if layout is None else type(layout)(None, None)  # on one device any layout is
        return jax.lax.reshape(a, (a.shape[0] * a.shape[1], math.prod(a.shape[2:])), out_sharding=whole)

    precision = matmul_precision(x, weight)
    d_x = jnp.einsum(f"{of_out},{of_weight}->{of_x}", d_out, weight, precision=precision, out_sharding=like_x)
    over_positions = (((0,), (0,)), ((), ()))
    d_weight = jax.lax.dot_general(matrix(x), matrix(d_out), over_positions, precision=precision)
    return d_x, jax.lax.reshape(d_weight, weight.shape, out_sharding=like_weight)


product.defvjp(_forward, _backward)
