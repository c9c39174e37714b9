"""AdamW, written out, behind optax's interface.

`GradientTransformation` is a pair of pure functions: `init(params) -> state` and
`update(grads, state, params) -> (updates, state)`; `optax.apply_updates` adds the updates to the parameters. Time goes into
reading and writing memory here: what an array is multiplied by is put together before, and nothing is written that is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlm.optim.masks import decay_mask
from jaxlm.optim.schedules import Schedule


@struct.dataclass
class AdamWState:
    """count: int32 [], updates made. mu, nu: first and second moments, in the shape and dtype of the parameters."""

    count: jax.Array
    mu: Any
    nu: Any


def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Callable[[Any], Any] | Any = decay_mask,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay.

    `update` also takes `applied`, a bool [], true by default: where it is false, moments and count stay bit by bit what they
    were, and the updates are not to be used.

    learning_rate: a number, or a schedule of the updates made before. mask: a tree of booleans, or a function from the
    parameters to one, true where a leaf decays; by default norms, biases and embeddings do not (`decay_mask`), and None
    lets every leaf decay. Moments are kept in the parameters' dtype.
    Raises ValueError without parameters, since decay needs them. Source: Loshchilov & Hutter 2019, algorithm 2, with the
    decay multiplied by the learning rate.
    """

    def init(params: Any) -> AdamWState:
        return AdamWState(
            count=jnp.zeros((), jnp.int32), mu=jax.tree.map(jnp.zeros_like, params), nu=jax.tree.map(jnp.zeros_like, params)
        )

    def update(
        grads: Any, state: AdamWState, params: Any = None, *, applied: jax.Array | None = None, **_: Any
    ) -> tuple[Any, AdamWState]:
        if params is None:
            raise ValueError("adamw: expected the parameters as third argument of update, found None")

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return new if applied is None else jnp.where(applied, new, old)

        rate = learning_rate(state.count) if callable(learning_rate) else jnp.asarray(learning_rate, jnp.float32)
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: kept(b1 * m + (1.0 - b1) * g, m), state.mu, grads)
        nu = jax.tree.map(lambda v, g: kept(b2 * v + (1.0 - b2) * jnp.square(g), v), state.nu, grads)
        # Without the bias correction the moments, which start at zero, would shrink the first updates.
        mu_scale = -rate / (1.0 - b1 ** count.astype(jnp.float32))
        nu_scale = 1.0 / (1.0 - b2 ** count.astype(jnp.float32))
        decays = mask(params) if callable(mask) else mask
        if decays is None:
            decays = jax.tree.map(lambda _: True, params)

        def step(m: jax.Array, v: jax.Array, p: jax.Array, decay: bool) -> jax.Array:
            move = m * mu_scale / (jnp.sqrt(v * nu_scale) + eps)
            return (move - rate * weight_decay * p if decay else move).astype(p.dtype)

        return jax.tree.map(step, mu, nu, params, decays), AdamWState(kept(count, state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
