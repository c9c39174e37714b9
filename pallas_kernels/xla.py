"""Attention over key ranges, forward and backward, in XLA: for devices without a kernel, and what kernels are measured against.

The backward pass recomputes the weights from the log-sum-exp of each row (Dao et al. 2022, algorithm 4), so that neither
direction keeps a matrix of T x S for it. On a CPU the rows of a batch come one after the other, each in tiles of queries and
keys whose scores fit the cache, and a tile in which no query sees a key is left out; elsewhere all rows go at once, with some
of their queries at a time, so that no matrix of T x S exists.

Axes: B batch, T query, S key, N query head, K key/value head, G query heads per key/value head, H head width, R = G * T.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.ranges import KeyRanges
from pallas_kernels.reference import LOWEST, MASKED, matmul_precision

TILE = 1 << 18  # scores of a tile on a CPU, over all heads: what the caches of two cores hold
QUERIES = 512  # of a tile elsewhere, by all keys


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges: KeyRanges, *, scale: float, softcap: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """out_BTNH in the dtype of the values, and lse, peak and mean, float32 [B, T, N]: see `Attended`.

    ranges: `within` the keys.
    """
    row = functools.partial(_forward_row, scale=scale, softcap=softcap)
    return _over_rows(row, q_BTNH, k_BSKH, v_BSKH, *ranges)


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    lse_BTN: jax.Array,
    delta_BTN: jax.Array,
    d_out_BTNH: jax.Array,
    *,
    scale: float,
    softcap: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v, in their dtypes. delta: sum(out * d_out) - d_lse over H, float32."""
    row = functools.partial(_backward_row, scale=scale, softcap=softcap)
    return _over_rows(row, q_BTNH, k_BSKH, v_BSKH, *ranges, lse_BTN, delta_BTN, d_out_BTNH)


def tile_size(heads: int) -> int:
    """Queries, and keys, of a tile on a CPU: a power of two, from 64 on; in smaller ones the calls cost more than the sums."""
    return max(64, 1 << math.isqrt(max(1, TILE // heads)).bit_length() - 1)


def queries_at_once(length: int) -> int:
    """Queries of a tile elsewhere than on a CPU: all of them up to twice `QUERIES`."""
    return length if length <= 2 * QUERIES else QUERIES


def _over_rows(row: Callable, *arrays: jax.Array) -> Any:
    """`row` on every element of the leading axis B: in sequence on a CPU, vectorised elsewhere."""
    (T, N), S = arrays[0].shape[1:3], arrays[1].shape[1]
    size = tile_size(N)

    def in_tiles(*xs: jax.Array) -> Any:
        return jax.lax.map(lambda x: row(*x, queries=min(size, T), keys=min(size, S)), xs)

    at_once = jax.vmap(functools.partial(row, queries=queries_at_once(T), keys=S))
    return jax.lax.platform_dependent(*arrays, cpu=in_tiles, default=lambda *xs: at_once(*xs))


# ---- one row of the batch; heads come before positions, and the queries of a group are read as one matrix --------------
# A row is turned round by itself, while the cache holds it: turned as a whole, a batch was written and read twice more.


def _swap(x: jax.Array) -> jax.Array:
    """Positions before heads to heads before positions, and back."""
    return jnp.swapaxes(x, 0, 1)


def _cut(x: jax.Array, heads: int, size: int) -> jax.Array:
    """[N, T, ...] -> [tiles, heads, N / heads * size, ...], filled up with zeros."""
    N, T = x.shape[:2]
    tiles = -(-T // size)
    if tiles * size != T:
        x = jnp.pad(x, [(0, 0), (0, tiles * size - T)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(heads, N // heads, tiles, size, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0).reshape(tiles, heads, N // heads * size, *x.shape[4:])


def _joined(x: jax.Array, heads: int, length: int) -> jax.Array:
    """The inverse of `_cut`: [tiles, K, G * size, ...] -> [heads, length, ...]."""
    tiles, K = x.shape[:2]
    x = x.reshape(tiles, K, heads // K, -1, *x.shape[3:])
    return jnp.moveaxis(x, 0, 2).reshape(heads, -1, *x.shape[4:])[:, :length]


def _ranges_cut(start_T: jax.Array, end_T: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Ranges, [tiles, size]; those of queries that fill up a tile are empty."""
    start, end = (_cut(bound[None], 1, size)[:, 0] for bound in (start_T, end_T))
    return start, end


def _seen_by_some(x_KSH: jax.Array, start_T: jax.Array, end_T: jax.Array) -> jax.Array:
    """Zeros for the keys that no query sees: their weight is 0, and 0 * NaN is NaN."""
    seen_S = KeyRanges(start_T[None], end_T[None]).seen(x_KSH.shape[1])[0]
    return jnp.where(seen_S[None, :, None], x_KSH, jnp.zeros_like(x_KSH))


def _over_keys(step: Callable, start: jax.Array, end: jax.Array, tiles: int, size: int, carry: Any) -> Any:
    """`step(tile, carry)` over those tiles of keys in which a query with this range may see a key."""
    if tiles == 1:
        return step(0, carry)
    some = start < end
    first = jnp.min(jnp.where(some, start, tiles * size)) // size
    last = (jnp.max(jnp.where(some, end, 0)) + size - 1) // size
    return jax.lax.fori_loop(first, last, step, carry)


def _over_queries(step: Callable, carry: Any, xs: tuple) -> tuple[Any, Any]:
    """`jax.lax.scan` over tiles of queries; without a loop where there is one."""
    if xs[0].shape[0] > 1:
        return jax.lax.scan(step, carry, xs)
    carry, ys = step(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda y: y[None], ys)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product, summed and returned in float32."""
    return jnp.einsum(equation, a, b, precision=matmul_precision(a, b), preferred_element_type=jnp.float32)


def _seen(start: jax.Array, end: jax.Array, first: jax.Array | int, keys: int, group: int) -> jax.Array:
    """Which of the keys from `first` on the queries of a tile see: [keys, G * size]."""
    s = (first + jnp.arange(keys, dtype=jnp.int32))[:, None]
    return jnp.tile((s >= start[None, :]) & (s < end[None, :]), (1, group))


def _capped(scores: jax.Array, softcap: float) -> jax.Array:
    return softcap * jnp.tanh(scores / softcap) if softcap else scores


def _forward_row(
    q_TNH: jax.Array,
    k_SKH: jax.Array,
    v_SKH: jax.Array,
    start_T: jax.Array,
    end_T: jax.Array,
    *,
    scale: float,
    softcap: float,
    queries: int,
    keys: int,
) -> tuple[jax.Array, ...]:
    q_NTH, k_KSH, v_KSH = _swap(q_TNH), _swap(k_SKH), _swap(v_SKH)
    (N, T), K = q_NTH.shape[:2], k_KSH.shape[0]
    k, v = (_cut(_seen_by_some(x, start_T, end_T), K, keys) for x in (k_KSH, v_KSH))
    starts, ends = _ranges_cut(start_T, end_T, queries)

    def over_queries(_: None, x: tuple) -> tuple[None, tuple]:
        q, start, end = x

        def over_keys(tile: jax.Array | int, carry: tuple) -> tuple:
            out, peak, total, moment = carry
            scores = _capped(_product("KRH,KSH->KRS", q, k[tile]) * scale, softcap)
            scores = jnp.where(_seen(start, end, tile * keys, keys, N // K).T[None], scores, MASKED)
            higher = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
            weights, fade = jnp.exp(scores - higher), jnp.exp(peak - higher)
            found = _product("KRS,KSH->KRH", weights.astype(v.dtype), v[tile])
            total = total * fade + jnp.sum(weights, axis=-1, keepdims=True)
            moment = moment * fade + jnp.sum(weights * scores, axis=-1, keepdims=True)
            return out * fade + found, higher, total, moment

        # The first peak is above that of keys which do not count, so that exp gives them the weight 0.
        rows = jnp.zeros_like(q[..., :1], jnp.float32)
        nothing = (jnp.zeros_like(q, jnp.float32), rows + LOWEST, rows, rows)
        out, peak, total, moment = _over_keys(over_keys, start, end, len(k), keys, nothing)
        empty = total == 0.0
        safe = jnp.where(empty, 1.0, total)
        lse = jnp.where(empty, MASKED, peak + jnp.log(safe))[..., 0]
        return None, ((out / safe).astype(v.dtype), lse, jnp.where(empty, MASKED, peak)[..., 0], (moment / safe)[..., 0])

    _, of_tiles = _over_queries(over_queries, None, (_cut(q_NTH, K, queries), starts, ends))
    return tuple(_swap(_joined(x, N, T)) for x in of_tiles)


def _backward_row(
    q_TNH: jax.Array,
    k_SKH: jax.Array,
    v_SKH: jax.Array,
    start_T: jax.Array,
    end_T: jax.Array,
    lse_TN: jax.Array,
    delta_TN: jax.Array,
    d_out_TNH: jax.Array,
    *,
    scale: float,
    softcap: float,
    queries: int,
    keys: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_TNH, d_out_TNH = (jnp.where((start_T < end_T)[:, None, None], x, jnp.zeros_like(x)) for x in (q_TNH, d_out_TNH))
    q_NTH, k_KSH, v_KSH = _swap(q_TNH), _swap(k_SKH), _swap(v_SKH)
    (N, T), (K, S) = q_NTH.shape[:2], k_KSH.shape[:2]
    k, v = (_cut(_seen_by_some(x, start_T, end_T), K, keys) for x in (k_KSH, v_KSH))
    turned_k = jnp.swapaxes(k, 2, 3)
    starts, ends = _ranges_cut(start_T, end_T, queries)

    def over_queries(d_kv: tuple, x: tuple) -> tuple[tuple, jax.Array]:
        q, lse, delta, d_out, start, end = x

        def over_keys(tile: jax.Array | int, carry: tuple) -> tuple:
            # Keys come before queries here, and the keys are turned for d_q: no product contracts the first axis of its first
            # operand, which would be turned in every tile.
            d_q, d_k, d_v = carry
            scores = _capped(_product("KSH,KRH->KSR", k[tile], q) * scale, softcap)
            seen = _seen(start, end, tile * keys, keys, N // K)[None]
            weights = jnp.where(seen, jnp.exp(scores - lse[:, None, :]), 0.0)
            d_weights = _product("KSH,KRH->KSR", v[tile], d_out)
            d_scores = weights * (d_weights - delta[:, None, :])
            if softcap:
                d_scores = jnp.where(seen, d_scores * (1.0 - jnp.square(scores / softcap)), 0.0)
            d_scores = (d_scores * scale).astype(q.dtype)
            d_v = d_v.at[tile].add(_product("KSR,KRH->KSH", weights.astype(v.dtype), d_out))
            d_k = d_k.at[tile].add(_product("KSR,KRH->KSH", d_scores, q))
            return d_q + _product("KHS,KSR->KHR", turned_k[tile], d_scores), d_k, d_v

        nothing = jnp.zeros_like(jnp.swapaxes(q, 1, 2), jnp.float32)
        d_q, *d_kv = _over_keys(over_keys, start, end, len(k), keys, (nothing, *d_kv))
        return tuple(d_kv), jnp.swapaxes(d_q.astype(q.dtype), 1, 2)

    zeros = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    xs = tuple(_cut(x, K, queries) for x in (q_NTH, _swap(lse_TN), _swap(delta_TN), _swap(d_out_TNH)))
    (d_k, d_v), d_q = _over_queries(over_queries, zeros, (*xs, starts, ends))
    d_k, d_v = _joined(d_k, K, S).astype(k.dtype), _joined(d_v, K, S).astype(v.dtype)
    return _swap(_joined(d_q, N, T)), _swap(d_k), _swap(d_v)
