"""Attention on Hopper, backward, gradients of keys and values: a tile of keys stays, the queries of its group stream past it.

Scores are computed turned, keys by queries, so that weights and their gradients are the left operands of the two sums and stay
in registers. The sums run over all the query heads that read the head, in order; each gradient is written once.

A warpgroup holds both sums. At a head width of 256 they do not fit, so there the two warpgroups have the same keys, compute the
same scores, and each sums half of the columns.

Axes: B batch, T query, S key, N query head, K key/value head, H head width, P part of the head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper import warpgroup
from pallas_kernels.hopper.tiling import Blocks
from pallas_kernels.hopper.warpgroup import Ring, over_rows
from pallas_kernels.ranges import KeyRanges, query_tiles
from pallas_kernels.results import made

WARPGROUPS = 2


def gradients_of_keys_and_values(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    rows_BTN: tuple[jax.Array, jax.Array],
    d_out_BTNH: jax.Array,
    *,
    keys: int,
    scale: float,
    softcap: float,
    blocks: Blocks,
    interpreted: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """d_k and d_v in the dtype of keys and values; arguments as in `gradient_of_queries`."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    queries, width, stages = blocks.queries, blocks.keys, blocks.stages
    parts, columns = warpgroup.split(H)
    owners = WARPGROUPS // parts  # tiles of keys in a block of threads
    count, tiles = pl.cdiv(S, owners * width), pl.cdiv(T, queries)
    plan = warpgroup.walks(query_tiles(ranges, keys, queries_per_tile=queries, keys_per_tile=width), owners)
    dtype = q_BTNH.dtype

    def kernel(*refs: Any) -> None:
        q_ref, k_ref, v_ref, d_out_ref, ranges_ref, rows_ref, plan_ref, d_k_ref, d_v_ref, smem, barriers = refs
        own, q_barriers, d_out_barriers, done = barriers
        k_smem, v_smem, q_smem, d_out_smem, ranges_smem, rows_smem, *staged = smem
        q_ring, d_out_ring = Ring(stages, *q_barriers), Ring(stages, *d_out_barriers)
        wg, batch, kv_head = lax.axis_index("wg"), lax.axis_index("batch"), lax.axis_index("heads")
        block = lax.axis_index("blocks")
        lo, hi = plan_ref[batch, block, 0, 0], plan_ref[batch, block, 0, 5]

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(warpgroup.compute_registers(WARPGROUPS), action="increase")
            owner, half = lax.div(wg, jnp.int32(parts)), lax.rem(wg, jnp.int32(parts))
            bounds = [plan_ref[batch, block, owner, i] for i in range(6)]
            first_key = (owners * block + owner) * width
            k, v = k_smem.at[owner], v_smem.at[owner]
            plgpu.barrier_wait(own.at[owner])

            def head(g: jax.Array, sums: tuple) -> tuple:
                before = g * (hi - lo) - lo

                def skip(tile: jax.Array) -> None:
                    q_ring.skip(before + tile)
                    d_out_ring.skip(before + tile)

                def add(tile: jax.Array, sums: tuple, masked: bool) -> tuple:
                    step, shape = before + tile, (width, queries)
                    slot = q_ring.slot(step)
                    d_k, d_v = sums
                    stage = [[x.at[wg]] for x in staged] or [[], []]
                    q_ring.wait(step)
                    d_out_ring.wait(step)
                    scores, d_weights = warpgroup.products((k, q_smem.at[slot]), (v, d_out_smem.at[slot]), shape=shape)
                    lse = plgpu.load(rows_smem.at[slot, 0], layout=warpgroup.COLUMNS)
                    x, factor = warpgroup.in_base_2(scores, scale, softcap)
                    weights = jnp.exp2(x * factor - over_rows(lse, shape))
                    delta = plgpu.load(rows_smem.at[slot, 1], layout=warpgroup.COLUMNS)
                    d_scores = weights * (d_weights - over_rows(delta, shape))
                    if softcap:
                        d_scores = d_scores * (1.0 - x * x)
                    if masked:
                        start, end = (plgpu.load(ranges_smem.at[slot, i], layout=warpgroup.COLUMNS) for i in range(2))
                        counts = warpgroup.seen(start, end, first_key, shape, keys_axis=0)
                        d_scores, weights = (jnp.where(counts, x, 0.0) for x in (d_scores, weights))
                    left = [warpgroup.operand(w.astype(dtype), s) for w, s in zip((d_scores, weights), stage, strict=True)]

                    def add_both(d_k: Any, d_v: Any) -> None:
                        plgpu.wgmma(d_k, left[0], q_smem.at[slot, half])
                        plgpu.wgmma(d_v, left[1], d_out_smem.at[slot, half])

                    d_k, d_v = warpgroup.summed(add_both, d_k, d_v, staged=staged)
                    d_out_ring.give_back(step)
                    q_ring.give_back(step)
                    return d_k, d_v

                return warpgroup.walk(bounds, add, skip, sums)

            sums = warpgroup.zeros(width, columns), warpgroup.zeros(width, columns)
            d_k, d_v = lax.fori_loop(0, N // K, head, sums)
            if parts > 1:  # both have read the keys and values before their gradients take the place
                plgpu.barrier_arrive(done)
                plgpu.barrier_wait(done)
            k.at[half][...] = (d_k * scale).astype(dtype)
            v.at[half][...] = d_v.astype(dtype)
            plgpu.commit_smem()
            part = (batch, pl.ds(first_key, width), kv_head, pl.ds(half * columns, columns))
            plgpu.copy_smem_to_gmem(k.at[half], d_k_ref.at[part])
            plgpu.copy_smem_to_gmem(v.at[half], d_v_ref.at[part])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(warpgroup.MEMORY_REGISTERS, action="decrease")

            for i in range(owners):
                for ref, smem in ((k_ref, k_smem), (v_ref, v_smem)):
                    warpgroup.copy_parts(ref, smem.at[i], own.at[i], batch, (owners * block + i) * width, kv_head)

            steps = (hi - lo) * (N // K)

            @pl.loop(0, steps)
            def _fill(step: jax.Array) -> None:
                head, tile = kv_head * (N // K) + lax.div(step, hi - lo), lo + lax.rem(step, hi - lo)
                q_ring.free(step)
                slot = q_ring.slot(step)
                barrier = q_ring.ready.at[slot]
                warpgroup.copy_parts(q_ref, q_smem.at[slot], barrier, batch, tile * queries, head)
                plgpu.copy_gmem_to_smem(ranges_ref.at[batch, tile], ranges_smem.at[slot], barrier)
                plgpu.copy_gmem_to_smem(rows_ref.at[batch, head, tile], rows_smem.at[slot], barrier)
                d_out_ring.free(step)
                warpgroup.copy_parts(d_out_ref, d_out_smem.at[slot], d_out_ring.ready.at[slot], batch, tile * queries, head)

            q_ring.drain(steps)
            d_out_ring.drain(steps)

    smem = [
        *[warpgroup.matrix(owners, parts, width, columns, dtype=dtype)] * 2,
        *[warpgroup.matrix(stages, parts, queries, columns, dtype=dtype)] * 2,
        plgpu.SMEM((stages, 2, queries), jnp.int32),
        plgpu.SMEM((stages, 2, queries), jnp.float32),
    ]
    if interpreted:
        smem += [warpgroup.matrix(WARPGROUPS, width, queries, dtype=dtype)] * 2
    barriers = (
        plgpu.Barrier(num_arrivals=2 * parts, num_barriers=owners),
        Ring.barriers(stages, copies=parts + 2, warpgroups=WARPGROUPS),
        Ring.barriers(stages, copies=parts, warpgroups=WARPGROUPS),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
    )
    return warpgroup.launched(
        kernel,
        q_BTNH,
        k_BSKH,
        v_BSKH,
        d_out_BTNH,
        warpgroup.cut_ranges(ranges, queries, tiles),
        warpgroup.cut_rows(rows_BTN, queries, tiles),
        plan,
        out_type=(made(k_BSKH.shape, dtype, q_BTNH),) * 2,
        scratch_types=(tuple(smem), barriers),
        grid=(count, B, K),
        warpgroups=WARPGROUPS,
        interpreted=interpreted,
    )
