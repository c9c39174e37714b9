"""Attention masks as half-open key ranges: query row t sees the keys `start[t] <= s < end[t]`.

Two int32 arrays of the queries' shape say all that causal order, a sliding window, packed documents and ragged lengths
need. They are runtime arrays, so one compiled program serves every mask, and a kernel can skip whole blocks of keys.
An empty range (`start >= end`) is a row that sees nothing; its output is zero.

A kernel works on tiles, so many queries by so many keys. `key_tiles` says for every tile of queries which tiles of keys it has
to visit, and in which of these it needs no mask; `query_tiles` says it the other way round, for gradients of keys and values.

Axes: B batch, T query, S key, I tile of queries, J tile of keys.
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

    def within(self, keys: int) -> KeyRanges:
        """The same over the keys that there are, 0 .. keys: a range that holds none of them is empty."""
        return KeyRanges(*(jnp.clip(bound.astype(jnp.int32), 0, keys) for bound in self))

    def seen(self, keys: int) -> jax.Array:
        """[B, S]: whether any query of the row sees the key, of ranges `within` them; by counting."""
        start, end = self
        some = (start < end).astype(jnp.int32)
        rows = jnp.arange(start.shape[0], dtype=jnp.int32)[:, None]
        change = jnp.zeros((start.shape[0], keys + 1), jnp.int32) + 0 * start[:, :1]  # varies over a mesh as they do
        change = change.at[rows, start].add(some).at[rows, end].add(-some)
        return jnp.cumsum(change, axis=1)[:, :keys] > 0


def _windowed(start: jax.Array, last: jax.Array, window: int) -> jax.Array:
    if window < 0:
        raise ValueError(f"window: expected a number of keys, or 0 for no bound, found {window}")
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


class Tiles(NamedTuple):
    """For each of some tiles, which tiles of the other kind it meets: first <= tile < last; those of full_first <= tile <
    full_last are seen whole, every key by every query. int32; first <= full_first <= full_last <= last."""

    first: jax.Array
    last: jax.Array
    full_first: jax.Array
    full_last: jax.Array


def _ceil_div(a: jax.Array, b: int) -> jax.Array:
    return -(-a // b)


def _cut(ranges: KeyRanges, keys: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Starts and ends within 0 .. keys, as [B, I, size]; queries that fill up the last tile are like the last query."""
    rows = ranges.start_BT.shape[1]
    filled = -(-rows // size) * size - rows
    bounds = (jnp.pad(x, ((0, 0), (0, filled)), mode="edge") for x in ranges.within(keys))
    start, end = (x.reshape(x.shape[0], -1, size) for x in bounds)
    return start, end


def key_tiles(ranges: KeyRanges, keys: int, *, queries_per_tile: int, keys_per_tile: int) -> Tiles:
    """The tiles of keys that each tile of queries meets: [B, I] each. A tile of queries that sees nothing meets none.

    Between first and last there may be tiles that no query of this tile sees, where its ranges leave a gap.
    """
    start, end = _cut(ranges, keys, queries_per_tile)
    some = start < end
    first = jnp.min(jnp.where(some, start, keys), axis=-1) // keys_per_tile
    last = _ceil_div(jnp.max(jnp.where(some, end, 0), axis=-1), keys_per_tile)
    first = jnp.minimum(first, last)
    # Rounded down, so that a last tile that is not full counts as one that needs the mask.
    full_first = jnp.clip(_ceil_div(jnp.max(start, axis=-1), keys_per_tile), first, last)
    full_last = jnp.clip(jnp.where(jnp.all(some, axis=-1), jnp.min(end, axis=-1), 0) // keys_per_tile, full_first, last)
    return Tiles(first, last, full_first, full_last)


def query_tiles(ranges: KeyRanges, keys: int, *, queries_per_tile: int, keys_per_tile: int) -> Tiles:
    """The tiles of queries that each tile of keys meets: [B, J] each.

    The full ones are the first run of such tiles: all of them for every mask that is made here, for others perhaps not.
    """
    over = key_tiles(ranges, keys, queries_per_tile=queries_per_tile, keys_per_tile=keys_per_tile)
    tiles = jnp.arange(-(-keys // keys_per_tile), dtype=jnp.int32)[None, :, None]
    first, last, full_first, full_last = (x[:, None, :] for x in over)
    met, full = (first <= tiles) & (tiles < last), (full_first <= tiles) & (tiles < full_last)
    count = first.shape[-1]
    index = jnp.arange(count, dtype=jnp.int32)[None, None, :]
    begin = jnp.min(jnp.where(met, index, count), axis=-1)
    finish = jnp.max(jnp.where(met, index + 1, 0), axis=-1)
    begin = jnp.minimum(begin, finish)
    # The first run of full tiles: from the first full one to the first after it that is not.
    opens = jnp.min(jnp.where(full, index, count), axis=-1)
    closes = jnp.min(jnp.where(~full & (index >= opens[..., None]), index, count), axis=-1)
    full_first = jnp.clip(opens, begin, finish)
    return Tiles(begin, finish, full_first, jnp.clip(closes, full_first, finish))
