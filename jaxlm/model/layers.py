"""The parts of a block: RMSNorm, rotary positions, activations, dropout. Pure functions of arrays.

Axes: B batch, T position, D model, N head (query or key/value), H head width, F hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def align(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` with leading axes of size 1 up to the rank of `x`: broadcasting is written out, never implicit."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - vector.ndim)))


def rms_norm(x: jax.Array, gain: jax.Array | None, *, eps: float) -> jax.Array:
    """x / sqrt(mean(x**2) + eps) * gain over the last axis, in float32; the result has the dtype of `x`.

    gain: of the last axis' width, or None for the identity (a model without norms). Source: Zhang & Sennrich 2019, eq. 4.
    """
    if gain is None:
        return x
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * align(gain, x).astype(jnp.float32)).astype(x.dtype)


def rope_angles(positions_BT: jax.Array, width: int, *, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, H/2], of position * theta**(-2j/H) for the pairs j = 0 .. H/2-1.

    The angles are float32 whatever the activations are: in bfloat16 the positions 255 and 256 are neighbours of 258.
    Source: Su et al. 2021, eq. 15.
    """
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles_BTh = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles_BTh), jnp.sin(angles_BTh)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array], *, pairing: str) -> jax.Array:
    """Rotate each pair of components by its angle, in float32; the result has the dtype of `x`.

    pairing: "half" pairs component j with j + H/2 (Hugging Face's layout of Llama), "interleaved" 2j with 2j + 1 (the paper's).
    """
    cos, sin = (a[:, :, None, :] for a in angles)
    wide = x_BTNH.astype(jnp.float32)
    if pairing == "half":
        a, b = jnp.split(wide, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = wide[..., 0::2], wide[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(wide.shape)
    return out.astype(x_BTNH.dtype)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap); the identity where cap is 0. Source: Gemma 2 report 2024, section 2."""
    return cap * jnp.tanh(x / cap) if cap else x


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of x and scale the rest by 1 / (1 - rate). The identity without a key or a rate."""
    if key is None or rate == 0.0:
        return x
    # Made where `x` lies, and the same whatever the mesh: each device draws its own part of one mask.
    layout = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape, out_sharding=layout)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


ACTIVATIONS = {"swiglu": jax.nn.silu, "silu": jax.nn.silu, "gelu": lambda x: jax.nn.gelu(x, approximate=True)}
