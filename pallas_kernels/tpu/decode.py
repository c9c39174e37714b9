"""One query of every sequence against a paged cache, on TPUs.

Pages are read in the order of the sequence, those outside of its range not at all; a core takes one sequence after the other,
so that there is nothing to gain from splitting one. The query heads that share a key/value head are the rows of one product.

Axes: B sequence, P page, M block of a sequence, S slot of a page, N query head, K key/value head, G query heads per key/value
head, H head width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.reference import LOWEST, MASKED
from pallas_kernels.results import made
from pallas_kernels.tpu.tiling import LANES, filled, product

ROWS = 16  # of a tile of 16-bit numbers


def decode(
    q_BNH: jax.Array,
    k_PSKH: jax.Array,
    v_PSKH: jax.Array,
    blocks_BM: jax.Array,
    start_B: jax.Array,
    end_B: jax.Array,
    *,
    scale: float,
    softcap: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """out_BNH in the dtype of the values and lse_BN, float32; zero and -1e30 where a sequence sees nothing.

    blocks: int32, which page holds each block of S positions of a sequence. A sequence sees the positions start <= s < end;
    what lies elsewhere in its pages is not read into a result, whatever it is.
    """
    B, N, H = q_BNH.shape
    (P, S, K, _), M = k_PSKH.shape, blocks_BM.shape[1]
    q_BKGH = filled(q_BNH.reshape(B, K, N // K, H), 2, ROWS)
    G = q_BKGH.shape[2]

    def page(b: Any, m: Any, blocks: Any, start: Any, end: Any) -> tuple:
        last = jnp.maximum((end[b] + S - 1) // S - 1, 0)
        block = blocks[b, jnp.clip(m, jnp.minimum(start[b] // S, last), last)]
        return jnp.clip(block, 0, P - 1), 0, 0, 0  # of a sequence that sees nothing it may be anything

    of_sequence = pl.BlockSpec((None, K, G, H), lambda b, m, *_: (b, 0, 0, 0))
    out, lse = pl.pallas_call(
        functools.partial(_kernel, scale=scale, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, M),
            in_specs=[of_sequence, pl.BlockSpec((None, S, K, H), page), pl.BlockSpec((None, S, K, H), page)],
            out_specs=[of_sequence, pl.BlockSpec((None, K, G, LANES), lambda b, m, *_: (b, 0, 0, 0))],
            scratch_shapes=[pltpu.VMEM((K, G, H), jnp.float32), *[pltpu.VMEM((K, G, 1), jnp.float32)] * 2],
        ),
        out_shape=[
            made((B, K, G, H), v_PSKH.dtype, q_BNH),
            made((B, K, G, LANES), jnp.float32, q_BNH),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="attention_decode",
    )(blocks_BM, jnp.clip(start_B, 0, M * S), jnp.clip(end_B, 0, M * S), q_BKGH, k_PSKH, v_PSKH)
    return out[:, :, : N // K].reshape(B, N, H), lse[:, :, : N // K, 0].reshape(B, N)


def _kernel(
    blocks: Any,
    start: Any,
    end: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    sum_KGH: Any,
    peak_KG1: Any,
    total_KG1: Any,
    *,
    scale: float,
    softcap: float,
) -> None:
    b, m = pl.program_id(0), pl.program_id(1)
    S, K, _ = k.shape

    @pl.when(m == 0)
    def begin() -> None:
        sum_KGH[...] = jnp.zeros_like(sum_KGH)
        peak_KG1[...] = jnp.full_like(peak_KG1, LOWEST)
        total_KG1[...] = jnp.zeros_like(total_KG1)

    @pl.when((m * S < end[b]) & ((m + 1) * S > start[b]) & (start[b] < end[b]))
    def attend() -> None:
        def seen(shape: tuple[int, ...], axis: int) -> jax.Array:
            s = m * S + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
            return (s >= start[b]) & (s < end[b])

        for head in range(K):
            k_SH, v_SH = k[:, head, :], v[:, head, :]
            v_SH = jnp.where(seen(v_SH.shape, 0), v_SH, jnp.zeros_like(v_SH))  # 0 * NaN is NaN
            scores_GS = product(q[head], k_SH, (1, 1)) * scale
            if softcap:
                scores_GS = softcap * jnp.tanh(scores_GS / softcap)
            scores_GS = jnp.where(seen(scores_GS.shape, 1), scores_GS, MASKED)
            peak_G1 = peak_KG1[head]
            higher_G1 = jnp.maximum(peak_G1, jnp.max(scores_GS, axis=1, keepdims=True))
            weights_GS, fade_G1 = jnp.exp(scores_GS - higher_G1), jnp.exp(peak_G1 - higher_G1)
            sum_KGH[head] = sum_KGH[head] * fade_G1 + product(weights_GS.astype(v_SH.dtype), v_SH, (1, 0))
            total_KG1[head] = total_KG1[head] * fade_G1 + jnp.sum(weights_GS, axis=1, keepdims=True)
            peak_KG1[head] = higher_G1

    @pl.when(m == pl.num_programs(1) - 1)
    def finish() -> None:
        total = total_KG1[...]
        empty = total == 0.0
        safe = jnp.where(empty, 1.0, total)
        out[...] = (sum_KGH[...] / safe).astype(out.dtype)
        lse[...] = jnp.broadcast_to(jnp.where(empty, MASKED, peak_KG1[...] + jnp.log(safe)), lse.shape)
