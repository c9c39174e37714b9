"""Attention masks as half-open key ranges: query row t sees the keys `start[t] <= s < end[t]`.

Two int32 arrays of the queries' shape say all that causal order, a sliding window, packed documents and ragged lengths
need. They are runtime arrays, so one compiled program serves every mask, and a kernel can skip whole blocks of keys.
An empty range (`start >= end`) is a row that sees nothing; its output is zero.

Axes: B batch, T query, S key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyRanges(NamedTuple):
    """start_BT, end_BT: int32, the first key that a query sees and the first after that it does not."""

    start_BT: jax.Array
    end_BT: jax.Array

    def mask(self, keys: int) -> jax.Array:
        """The ranges as a boolean mask [B, T, S], true where the query sees the key."""
        s = jnp.arange(keys, dtype=jnp.int32)[None, None, :]
        return (s >= self.start_BT[:, :, None]) & (s < self.end_BT[:, :, None])


def _windowed(start: jax.Array, last: jax.Array, window: int) -> jax.Array:
    return jnp.maximum(start, last - window + 1) if window else start


def causal(batch: int, queries: int, keys: int | None = None, *, window: int = 0) -> KeyRanges:
    """Causal order, bottom-right aligned: the last query sees the last key.

    window: how many keys a query sees at most, its own included; 0 is no bound.
    """
    keys = queries if keys is None else keys
    last = jnp.arange(queries, dtype=jnp.int32) + (keys - queries)
    start = _windowed(jnp.zeros_like(last), last, window)
    return KeyRanges(*(jnp.tile(x[None, :], (batch, 1)) for x in (jnp.maximum(start, 0), last + 1)))


def packed(segments_BT: jax.Array, positions_BT: jax.Array, *, window: int = 0) -> KeyRanges:
    """Causal order inside each document of a pack.

    segments_BT: int32, equal within a document, 0 for padding, which sees nothing. positions_BT: int32, counting from 0
    at the start of each segment, so that `t - position` is the segment's first key.
    """
    t = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None, :]
    start = _windowed(t - positions_BT, t, window)
    end = jnp.where(segments_BT > 0, t + 1, 0)
    return KeyRanges(start, end)


def decode(slots_BT: jax.Array, *, window: int = 0, capacity: int) -> KeyRanges:
    """Queries that stand at `slots_BT` of a cache of `capacity` keys and see it up to themselves.

    A slot of `capacity` or more marks padding, which sees nothing.
    """
    start = jnp.maximum(_windowed(jnp.zeros_like(slots_BT), slots_BT, window), 0)
    return KeyRanges(start, jnp.where(slots_BT < capacity, slots_BT + 1, 0))
