"""The kernels for the gradients on TPUs: one by the queries, one by keys and values, each of which writes what is its own once.

The weights are made again from the log-sum-exp of every query (Dao et al. 2022, algorithm 4). Nothing is added up across the
grid but along its last axis, which runs in order: the same bits every time.

Axes: B batch, T query, S key, N query head, K key/value head, G query heads per key/value head, H head width, I tile of
queries, J tile of keys.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ranges import KeyRanges, key_tiles, query_tiles
from pallas_kernels.results import made
from pallas_kernels.tpu.tiling import Tiling, filled, fitted, product, scores_of, seen_by

IN_ORDER = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))


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
    tiling: Tiling,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v, in their dtypes. lse: of `forward`. delta: sum(out * d_out) - d_lse, float32, over H.

    All of q, k, v and d_out have to be finite, also where nothing is seen.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    G = N // K
    queries, keys = fitted(tiling.queries_back, T), fitted(tiling.keys_back, S)
    q, d_out = (filled(jnp.swapaxes(x, 1, 2), 2, queries) for x in (q_BTNH, d_out_BTNH.astype(q_BTNH.dtype)))
    k, v = (filled(jnp.swapaxes(x, 1, 2), 2, keys) for x in (k_BSKH, v_BSKH))
    lse, delta = (filled(jnp.swapaxes(x, 1, 2)[:, :, None], 3, queries) for x in (lse_BTN, delta_BTN))
    start, end = (filled(x[:, None], 2, queries) for x in ranges.within(S))
    I, J = q.shape[2] // queries, k.shape[2] // keys
    sizes = {"queries_per_tile": queries, "keys_per_tile": keys}
    given = (q, k, v, start, end, lse, delta, d_out)

    def clipped(first: Any, last: Any, at: tuple, step: Any) -> Any:
        return jnp.clip(first[at] + step, 0, jnp.maximum(last[at] - 1, 0))

    def blocks(head: Any, of_head: Any, i: Any, j: Any) -> list[pl.BlockSpec]:
        """What either kernel reads: `head`, `of_head` (of keys), `i` and `j` are functions of the grid's indices and tables."""
        of_queries = pl.BlockSpec((None, None, queries, H), lambda *at: (at[0], head(*at), i(*at), 0))
        of_keys = pl.BlockSpec((None, None, keys, H), lambda *at: (at[0], of_head(*at), j(*at), 0))
        of_range = pl.BlockSpec((None, 1, queries), lambda *at: (at[0], 0, i(*at)))
        of_row = pl.BlockSpec((None, None, 1, queries), lambda *at: (at[0], head(*at), 0, i(*at)))
        return [of_queries, of_keys, of_keys, of_range, of_range, of_row, of_row, of_queries]

    d_q = pl.pallas_call(
        functools.partial(_by_queries, scale=scale, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, N, I, J),
            in_specs=blocks(
                lambda b, n, *_: n,
                lambda b, n, *_: n // G,
                lambda b, n, i, *_: i,
                lambda b, n, i, j, first, last, *_: clipped(first, last, (b, i), j),
            ),
            out_specs=pl.BlockSpec((None, None, queries, H), lambda b, n, i, j, *_: (b, n, i, 0)),
            scratch_shapes=[pltpu.VMEM((H, queries), jnp.float32)],
        ),
        out_shape=made(q.shape, q.dtype, q),
        compiler_params=IN_ORDER,
        interpret=interpret,
        name="attention_dq",
    )(*key_tiles(ranges, S, **sizes), *given)

    # The last axis of the grid: the tiles of queries of one head of the group after the other.
    d_k, d_v = pl.pallas_call(
        functools.partial(_by_keys, scale=scale, softcap=softcap, tiles=I),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, K, J, G * I),
            in_specs=blocks(
                lambda b, kv, j, step, *_: kv * G + step // I,
                lambda b, kv, *_: kv,
                lambda b, kv, j, step, first, last, *_: clipped(first, last, (b, j), step % I),
                lambda b, kv, j, *_: j,
            ),
            out_specs=[pl.BlockSpec((None, None, keys, H), lambda b, kv, j, step, *_: (b, kv, j, 0))] * 2,
            scratch_shapes=[pltpu.VMEM((keys, H), jnp.float32)] * 2,
        ),
        out_shape=[made(x.shape, x.dtype, q) for x in (k, v)],
        compiler_params=IN_ORDER,
        interpret=interpret,
        name="attention_dkv",
    )(*query_tiles(ranges, S, **sizes), *given)
    return tuple(jnp.swapaxes(x[:, :, :length], 1, 2) for x, length in ((d_q, T), (d_k, S), (d_v, S)))  # type: ignore[return-value]


def _weights_and_gradients(refs: tuple, tile: Any, whole: bool, *, scale: float, softcap: float) -> tuple[jax.Array, jax.Array]:
    """Of one tile: the weights, and the gradients by scores before scale and cap, [S, T] in float32."""
    q, k, v, start, end, lse, delta, d_out = refs
    keys = k.shape[0]
    scores_ST = scores_of(k[...], q[...], scale=scale, softcap=softcap)
    weights_ST = jnp.exp(scores_ST - lse[...])
    d_scores_ST = weights_ST * (product(v[...], d_out[...], (1, 1)) - delta[...])
    if softcap:
        d_scores_ST = d_scores_ST * (1.0 - jnp.square(scores_ST / softcap))
    if whole:
        return weights_ST, d_scores_ST
    seen_ST = seen_by(start[...], end[...], tile * keys, keys)
    return jnp.where(seen_ST, weights_ST, 0.0), jnp.where(seen_ST, d_scores_ST, 0.0)


def _by_queries(first: Any, last: Any, full_first: Any, full_last: Any, *refs: Any, scale: float, softcap: float) -> None:
    *given, d_q, sum_HT = refs
    k = given[1]
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    tile = first[b, i] + step
    full = (tile >= full_first[b, i]) & (tile < full_last[b, i])

    @pl.when(step == 0)
    def begin() -> None:
        sum_HT[...] = jnp.zeros_like(sum_HT)

    def add(whole: bool) -> None:
        _, d_scores_ST = _weights_and_gradients(tuple(given), tile, whole, scale=scale, softcap=softcap)
        sum_HT[...] += product(k[...], d_scores_ST.astype(k.dtype), (0, 0))

    pl.when((tile < last[b, i]) & full)(functools.partial(add, True))
    pl.when((tile < last[b, i]) & ~full)(functools.partial(add, False))

    @pl.when(step == pl.num_programs(3) - 1)
    def finish() -> None:
        d_q[...] = (sum_HT[...] * scale).T.astype(d_q.dtype)


def _by_keys(
    first: Any, last: Any, full_first: Any, full_last: Any, *refs: Any, scale: float, softcap: float, tiles: int
) -> None:
    *given, d_k, d_v, sum_k_SH, sum_v_SH = refs
    q, d_out = given[0], given[7]
    b, j, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    tile = first[b, j] + step % tiles  # of queries
    full = (tile >= full_first[b, j]) & (tile < full_last[b, j])

    @pl.when(step == 0)
    def begin() -> None:
        sum_k_SH[...] = jnp.zeros_like(sum_k_SH)
        sum_v_SH[...] = jnp.zeros_like(sum_v_SH)

    def add(whole: bool) -> None:
        weights_ST, d_scores_ST = _weights_and_gradients(tuple(given), j, whole, scale=scale, softcap=softcap)
        sum_v_SH[...] += product(weights_ST.astype(d_out.dtype), d_out[...], (1, 0))
        sum_k_SH[...] += product(d_scores_ST.astype(q.dtype), q[...], (1, 0))

    pl.when((tile < last[b, j]) & full)(functools.partial(add, True))
    pl.when((tile < last[b, j]) & ~full)(functools.partial(add, False))

    @pl.when(step == pl.num_programs(3) - 1)
    def finish() -> None:
        d_k[...] = (sum_k_SH[...] * scale).astype(d_k.dtype)
        d_v[...] = sum_v_SH[...].astype(d_v.dtype)
