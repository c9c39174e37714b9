"""The forward kernel for TPUs: softmax over tiles of keys with a running maximum (Dao et al. 2022, algorithm 1).

The grid's last axis counts the tiles of keys that a tile of queries meets, from its first one on; where there are fewer than
the longest row has, the steps left over read nothing new and do nothing.

Axes: B batch, T query, S key, N query head, K key/value head, H head width, I tile of queries, J tile of keys.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ranges import KeyRanges, key_tiles
from pallas_kernels.reference import LOWEST, MASKED
from pallas_kernels.results import made
from pallas_kernels.tpu.tiling import Tiling, filled, fitted, masked, product, scores_of, seen_by

STATISTICS = 8  # rows of the block in which log-sum-exp, largest score and mean score of every query leave


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    *,
    scale: float,
    softcap: float,
    tiling: Tiling,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """out_BTNH in the dtype of the values, and lse, peak and mean, float32 [B, T, N]: see `pallas_kernels.reference.Attended`.

    Any length. q, k and v are of one dtype, bfloat16 or float32. Keys and values that no query sees have to be finite.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    queries, keys = fitted(tiling.queries, T), fitted(tiling.keys, S)
    tiles = key_tiles(ranges, S, queries_per_tile=queries, keys_per_tile=keys)
    q = filled(jnp.swapaxes(q_BTNH, 1, 2), 2, queries)
    k, v = (filled(jnp.swapaxes(x, 1, 2), 2, keys) for x in (k_BSKH, v_BSKH))
    start, end = (filled(x[:, None], 2, queries) for x in ranges.within(S))
    I, J = q.shape[2] // queries, k.shape[2] // keys

    def of_queries(b: Any, n: Any, i: Any, j: Any, *tables: Any) -> tuple:
        return b, n, i, 0

    def of_keys(b: Any, n: Any, i: Any, j: Any, first: Any, last: Any, *tables: Any) -> tuple:
        return b, n // (N // K), jnp.clip(first[b, i] + j, 0, jnp.maximum(last[b, i] - 1, 0)), 0

    def of_range(b: Any, n: Any, i: Any, j: Any, *tables: Any) -> tuple:
        return b, 0, i

    row = functools.partial(pltpu.VMEM, (1, queries), jnp.float32)
    out, statistics = pl.pallas_call(
        functools.partial(_kernel, scale=scale, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, N, I, J),
            in_specs=[
                pl.BlockSpec((None, None, queries, H), of_queries),
                pl.BlockSpec((None, None, keys, H), of_keys),
                pl.BlockSpec((None, None, keys, H), of_keys),
                pl.BlockSpec((None, 1, queries), of_range),
                pl.BlockSpec((None, 1, queries), of_range),
            ],
            out_specs=[
                pl.BlockSpec((None, None, queries, H), of_queries),
                pl.BlockSpec((None, None, STATISTICS, queries), lambda b, n, i, j, *tables: (b, n, 0, i)),
            ],
            scratch_shapes=[pltpu.VMEM((H, queries), jnp.float32), row(), row(), row()],
        ),
        out_shape=[
            made(q.shape, v.dtype, q),
            made((B, N, STATISTICS, q.shape[2]), jnp.float32, q),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="attention_forward",
    )(*tiles, q, k, v, start, end)
    lse, peak, mean = (jnp.swapaxes(statistics[:, :, row, :T], 1, 2) for row in range(3))
    return jnp.swapaxes(out[:, :, :T], 1, 2), lse, peak, mean


def _kernel(
    first: Any,
    last: Any,
    full_first: Any,
    full_last: Any,
    q: Any,
    k: Any,
    v: Any,
    start: Any,
    end: Any,
    out: Any,
    statistics: Any,
    sum_HT: Any,
    peak_1T: Any,
    total_1T: Any,
    moment_1T: Any,
    *,
    scale: float,
    softcap: float,
) -> None:
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    tile = first[b, i] + step
    full = (tile >= full_first[b, i]) & (tile < full_last[b, i])

    @pl.when(step == 0)
    def begin() -> None:
        sum_HT[...] = jnp.zeros_like(sum_HT)
        peak_1T[...] = jnp.full_like(peak_1T, LOWEST)
        total_1T[...] = jnp.zeros_like(total_1T)
        moment_1T[...] = jnp.zeros_like(moment_1T)

    def attend(whole: bool) -> None:
        keys = k.shape[0]
        seen_ST = None if whole else seen_by(start[...], end[...], tile * keys, keys)
        scores_ST = masked(scores_of(k[...], q[...], scale=scale, softcap=softcap), seen_ST)
        higher_1T = jnp.maximum(peak_1T[...], jnp.max(scores_ST, axis=0, keepdims=True))
        weights_ST, fade_1T = jnp.exp(scores_ST - higher_1T), jnp.exp(peak_1T[...] - higher_1T)
        sum_HT[...] = sum_HT[...] * fade_1T + product(v[...], weights_ST.astype(v.dtype), (0, 0))
        total_1T[...] = total_1T[...] * fade_1T + jnp.sum(weights_ST, axis=0, keepdims=True)
        moment_1T[...] = moment_1T[...] * fade_1T + jnp.sum(weights_ST * scores_ST, axis=0, keepdims=True)
        peak_1T[...] = higher_1T

    pl.when((tile < last[b, i]) & full)(functools.partial(attend, True))
    pl.when((tile < last[b, i]) & ~full)(functools.partial(attend, False))

    @pl.when(step == pl.num_programs(3) - 1)
    def finish() -> None:
        total = total_1T[...]
        empty = total == 0.0
        safe = jnp.where(empty, 1.0, total)
        out[...] = (sum_HT[...] / safe).T.astype(out.dtype)
        lse, peak = (jnp.where(empty, MASKED, x) for x in (peak_1T[...] + jnp.log(safe), peak_1T[...]))
        row = jax.lax.broadcasted_iota(jnp.int32, statistics.shape, 0)
        statistics[...] = jnp.where(row == 0, lse, jnp.where(row == 1, peak, moment_1T[...] / safe))
