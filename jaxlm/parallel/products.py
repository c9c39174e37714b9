"""The product of activations and a weight on one device, forward and backward as products of two matrices.

Left to itself jax writes the gradient of a weight as (gradients x activations), transposed. The compiler then transposes the
gradients of the activations before the product, and makes them anew while it does so, element after element down the columns;
and where two axes are summed over, rows and positions or heads and their width, it copies an operand. Written as (activations x
gradients), and always with one axis to sum over, nothing is copied. On 2 cores a step of the benchmark's model took 1.55 s with
gradients in this order, and 1.83 s without (docs/bench/2026-11-25-train.md).

A result whose rows are 256, 512 or 1024 numbers long takes XLA:CPU up to 1.8 times as long as one whose rows are not a power of
two, as rows that far apart share places of the cache. There a weight's gradient is made the other way round, and then turned.
Else, where the activations are the narrower ones, they are turned first, once for all products that read them: rows by columns
XLA:CPU multiplies at 0.95 of the machine's rate, columns by columns at 0.82 to 0.95.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax

from pallas_kernels import matmul_precision

NAME = "weight_product"  # by which rematerialisation finds the results


def suits(x: jax.Array, weight: jax.Array, equation: str) -> bool:
    """Whether `product` is for these: x has B, T and more, the result B, T and others, and the weight what is more and the
    others, in this order; and every array is whole on one device."""
    (of_x, letters), out = equation.split("->")[0].split(","), equation.split("->")[1]
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or (mesh.size == 1 and not any(jax.typeof(a).sharding.spec.reduced for a in (x, weight)))
    return whole and out[:2] == of_x[:2] == "BT" and letters == of_x[2:] + out[2:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(layout: Any, x: jax.Array, weight: jax.Array) -> jax.Array:
    """[B, T, X..] times [X.., Y..], of one dtype, summed over X..: [B, T, Y..]. It is `jnp.einsum` with what `suits`.

    layout: the PartitionSpec of the result under a mesh, None without one.
    """
    out = _dot(_matrix(x, 2, layout), _matrix(weight, x.ndim - 2, layout), (1, 0))
    return jax.lax.reshape(out, x.shape[:2] + weight.shape[x.ndim - 2 :], out_sharding=layout)


def _matrix(array: jax.Array, rows: int, layout: Any) -> jax.Array:
    """`array` with its first `rows` axes as one, and the others as one."""
    whole = None if layout is None else type(layout)(None, None)  # on one device any layout is
    return jax.lax.reshape(array, (math.prod(array.shape[:rows]), math.prod(array.shape[rows:])), out_sharding=whole)


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((contracted[:1], contracted[1:]), ((), ())), precision=matmul_precision(a, b))


def _forward(layout: Any, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return product(layout, x, weight), (x, weight)


def _backward(layout: Any, kept: tuple, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    def like(made: jax.Array, a: jax.Array) -> jax.Array:
        return jax.lax.reshape(made, a.shape, out_sharding=None if layout is None else jax.typeof(a).sharding.spec)

    x, weight = kept
    flat_x, flat_weight = _matrix(x, 2, layout), _matrix(weight, x.ndim - 2, layout)
    gradients = _matrix(d_out, 2, layout)
    return like(_dot(gradients, flat_weight, (1, 1)), x), like(_of_weight(flat_x, gradients), weight)


def _of_weight(x: jax.Array, gradients: jax.Array) -> jax.Array:
    """The gradient [X, Y] of a weight from activations [R, X] and gradients [R, Y]."""

    def straight(x: jax.Array, gradients: jax.Array) -> jax.Array:
        return _dot(x, gradients, (0, 0))

    # The compiler would undo both of these: hence the barriers.
    def rows(x: jax.Array, gradients: jax.Array) -> jax.Array:
        return _dot(jax.lax.optimization_barrier(x.T), gradients, (1, 0))

    def turned(x: jax.Array, gradients: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(_dot(gradients, x, (0, 0))).T

    if x.shape[1] <= gradients.shape[1]:
        return jax.lax.platform_dependent(x, gradients, cpu=rows, default=straight)
    if _share_places(gradients.shape[1]) and not _share_places(x.shape[1]):
        return jax.lax.platform_dependent(x, gradients, cpu=turned, default=straight)
    return straight(x, gradients)


def _share_places(length: int) -> bool:
    """Whether rows of so many numbers lie at places of the cache that exclude each other: those of a large power of two do."""
    return length >= 256 and length & (length - 1) == 0


product.defvjp(_forward, _backward)
