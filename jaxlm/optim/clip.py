"""Clipping by the global norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves together, float32 []. NaN or infinity in any leaf makes it NaN or infinite."""
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves), start=jnp.zeros((), jnp.float32)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scale all gradients by max_norm / norm where their global norm is larger. Source: Pascanu et al. 2013, section 3.2.

    `update` also takes `norm`, float32 [], where the global norm is known already. It hides nothing: where the norm is not
    finite every result is NaN, and the step that follows is skipped.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_by_global_norm: expected a norm > 0, found {max_norm}")

    def update(
        grads: Any, state: optax.EmptyState, params: Any = None, *, norm: jax.Array | None = None, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        norm = global_norm(grads) if norm is None else norm
        scale = jnp.where(jnp.isfinite(norm), jnp.minimum(1.0, max_norm / norm), jnp.nan)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
