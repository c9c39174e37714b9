"""From logits to a token: temperature, top-k, top-p, min-p.

All knobs are arrays, so that other values do not compile another program.
Axes: B batch, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.contract import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is argmax; top_k 0, top_p 1 and min_p 0 are off.

    The filters are applied to the logits divided by the temperature, in this order: the top_k largest; of those the smallest
    set whose probability reaches top_p (Holtzman et al. 2020); of those the ones with at least min_p times the probability of
    the likeliest (Nguyen et al. 2024).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)!r}")

        require(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", "a number >= 0")
        require(isinstance(self.top_k, Integral) and self.top_k >= 0, "top_k", "an integer >= 0 (0: off)")
        require(0.0 < self.top_p <= 1.0, "top_p", "a share above 0, at most 1 (1: off)")
        require(0.0 <= self.min_p < 1.0, "min_p", "a share from 0 to below 1 (0: off)")
        require(isinstance(self.seed, Integral) and 0 <= self.seed < 2**32, "seed", "an integer from 0 to 2**32 - 1")

    def knobs(self) -> Knobs:
        """The numbers as device scalars."""
        return Knobs(
            temperature=jnp.float32(self.temperature),
            top_k=jnp.int32(min(self.top_k, 2**31 - 1)),
            top_p=jnp.float32(self.top_p),
            min_p=jnp.float32(self.min_p),
        )


@struct.dataclass
class Knobs:
    """The numbers of `Sampling` inside a compiled program, scalars."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def filtered(logits_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """Logits less their largest, divided by the temperature, float32, with -inf where the filters leave a token out.

    The largest is 0, so that no temperature, however small, makes two logits the same infinity. The likeliest
    token always stays. Tokens that tie with the last one that stays, stay too.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    scaled_BV = below_BV / jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
    ordered_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    vocab = logits_BV.shape[-1]
    rank_V = jnp.arange(vocab)[None, :]
    stays_BV = rank_V < jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, vocab), vocab)
    weights_BV = jax.nn.softmax(jnp.where(stays_BV, ordered_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(weights_BV, axis=-1) - weights_BV
    stays_BV &= (before_BV < knobs.top_p) | (knobs.top_p >= 1.0)
    stays_BV &= weights_BV >= knobs.min_p * weights_BV[:, :1]
    stays_BV |= rank_V == 0
    least_B = jnp.min(jnp.where(stays_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled_BV >= least_B, scaled_BV, -jnp.inf)


def sample(logits_BV: jax.Array, keys_B: jax.Array, knobs: Knobs) -> jax.Array:
    """One id a row, int32 [B]. keys_B: a PRNG key a row. Temperature 0 takes the largest logit, the first of equals."""
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, filtered(logits_BV, knobs))
    return jnp.where(knobs.temperature > 0, drawn_B, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
