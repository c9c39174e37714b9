"""The key/value cache: prefill of a ragged batch of prompts, then one position at a time.

Slot s of a row's cache holds its s-th token, so a slot is a position. Prompts are padded on the left to one length; a
padding token has a slot past the capacity, which is not written and not seen.

Axes: B batch, T position, S slot, K key/value head, H head width, L layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.schema import ModelConfig
from jaxlm.infer.sampling import Knobs, sample
from jaxlm.model import LayerCache, Mask, Params, Policy, hidden, project
from jaxlm.parallel import PRESETS

RULES = PRESETS["single"]


class Cache(NamedTuple):
    """k, v: [L, B, S, K, H] in the compute dtype. length_B: int32, slots that are filled."""

    k: jax.Array
    v: jax.Array
    length_B: jax.Array

    @property
    def capacity(self) -> int:
        """Slots of a row, S."""
        return self.k.shape[2]


def empty_cache(cfg: ModelConfig, batch: int, *, capacity: int, policy: Policy) -> Cache:
    """A cache without tokens. capacity: at most the trained context."""
    if capacity > cfg.context_length:
        raise ValueError(f"expected a capacity of at most the trained context {cfg.context_length}, found {capacity}")
    shape = (cfg.n_layers, batch, capacity, cfg.kv_heads, cfg.head_width)
    zeros = jnp.zeros(shape, policy.compute)
    return Cache(zeros, zeros, jnp.zeros((batch,), jnp.int32))


def pad_left(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens_BT, int32, padded on the left with 0, and their lengths_B, int32."""
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    return tokens, np.asarray([len(prompt) for prompt in prompts], np.int32)


def extend(
    params: Params, cache: Cache, tokens_BT: jax.Array, lengths_B: jax.Array, cfg: ModelConfig, *, policy: Policy
) -> tuple[jax.Array, Cache]:
    """Append the last lengths_B tokens of each row to the cache; logits_BTV of every position, padded vocabulary.

    Logits of padding positions mean nothing. A row that would outgrow the capacity is not written past it: the caller
    keeps to the capacity (`Engine` refuses beforehand).
    """
    T = tokens_BT.shape[1]
    offset_BT = jnp.arange(T)[None, :] - (T - lengths_B[:, None])
    slots_BT = jnp.where(offset_BT >= 0, cache.length_B[:, None] + offset_BT, cache.capacity)
    mask = Mask.cached(slots_BT, capacity=cache.capacity, window=cfg.window)
    layers = LayerCache(cache.k, cache.v, slots_BT)
    x_BTD, _, written = hidden(params, tokens_BT, cfg, mask, policy=policy, rules=RULES, cache=layers)
    assert written is not None
    logits_BTV = project(params, x_BTD, cfg, policy=policy, rules=RULES)
    return logits_BTV, Cache(written.k, written.v, cache.length_B + lengths_B)


class Cursor(NamedTuple):
    """Where a generation stands: the next token of each row (not yet in the cache), its PRNG key, and the cache.

    finite: bool [], whether every logit so far was finite (padding aside).
    """

    next_B: jax.Array
    keys_B: jax.Array
    cache: Cache
    finite: jax.Array


def draw(logits_BV: jax.Array, keys_B: jax.Array, position_B: jax.Array, knobs: Knobs, cfg: ModelConfig) -> tuple:
    """The token at `position_B`, drawn with fold_in(key of the row, position): no draw depends on another row or chunk."""
    logits_BV = logits_BV[:, : cfg.vocab_size]
    keys = jax.vmap(jax.random.fold_in)(keys_B, position_B)
    return sample(logits_BV, keys, knobs), jnp.isfinite(logits_BV).all()


def prefill(
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    keys_B: jax.Array,
    knobs: Knobs,
    cfg: ModelConfig,
    *,
    capacity: int,
    policy: Policy,
) -> Cursor:
    """Read left-padded prompts and draw the first token of each row."""
    cache = empty_cache(cfg, tokens_BT.shape[0], capacity=capacity, policy=policy)
    logits_BTV, cache = extend(params, cache, tokens_BT, lengths_B, cfg, policy=policy)
    first_B, finite = draw(logits_BTV[:, -1], keys_B, cache.length_B, knobs, cfg)
    return Cursor(first_B, keys_B, cache, finite)


def decode(params: Params, cursor: Cursor, knobs: Knobs, cfg: ModelConfig, *, steps: int, policy: Policy) -> tuple:
    """`steps` tokens in one compiled loop: (the tokens [B, steps], from the cursor's next one on; the new cursor)."""
    ones_B = jnp.ones_like(cursor.next_B)

    def step(cursor: Cursor, _: None) -> tuple[Cursor, jax.Array]:
        logits_BTV, cache = extend(params, cursor.cache, cursor.next_B[:, None], ones_B, cfg, policy=policy)
        next_B, finite = draw(logits_BTV[:, 0], cursor.keys_B, cache.length_B, knobs, cfg)
        return Cursor(next_B, cursor.keys_B, cache, cursor.finite & finite), cursor.next_B

    cursor, tokens_TB = jax.lax.scan(step, cursor, None, length=steps)
    return tokens_TB.T, cursor


prefill_step = jax.jit(prefill, static_argnames=("cfg", "capacity", "policy"))
decode_steps = jax.jit(decode, static_argnames=("cfg", "steps", "policy"), donate_argnames="cursor")
