"""Attention on Hopper, backward, gradient of the queries: a tile of queries stays, the keys and values stream past it.

The weights are computed anew from the log-sum-exp of each row (Dao et al. 2022, algorithm 4). Each gradient is written once by
the block that sums it, in the order of the keys: nothing depends on which block comes first.

Axes: B batch, T query, S key, N query head, K key/value head, H head width, I tile of queries.
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
from pallas_kernels.hopper.warpgroup import Ring, over_columns
from pallas_kernels.ranges import KeyRanges, key_tiles
from pallas_kernels.results import made

WARPGROUPS = 2


def gradient_of_queries(
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
) -> jax.Array:
    """d_q in the dtype of the queries. T and S are multiples of 8; keys: how many keys there are without what fills up S.

    rows_BTN: float32, the log-sum-exp in base 2, and what `attention_gradients` has as the mean gain of a row.
    """
    (B, T, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    queries, width, stages = blocks.queries, blocks.keys, blocks.stages
    parts, columns = warpgroup.split(H)
    owners = WARPGROUPS // parts  # tiles of queries in a block of threads
    count = pl.cdiv(T, owners * queries)
    tiles = owners * count
    plan = warpgroup.walks(key_tiles(ranges, keys, queries_per_tile=queries, keys_per_tile=width), owners)
    dtype = q_BTNH.dtype

    def kernel(*refs: Any) -> None:
        q_ref, k_ref, v_ref, d_out_ref, ranges_ref, rows_ref, plan_ref, d_q_ref, smem, barriers = refs
        q_smem, d_out_smem, k_smem, v_smem, ranges_smem, rows_smem, *staged = smem
        own, k_barriers, v_barriers, done = barriers
        k_ring, v_ring = Ring(stages, *k_barriers), Ring(stages, *v_barriers)
        wg, batch, head = lax.axis_index("wg"), lax.axis_index("batch"), lax.axis_index("heads")
        block = count - 1 - lax.axis_index("blocks")  # with a causal mask the longest first
        lo, hi = plan_ref[batch, block, 0, 0], plan_ref[batch, block, 0, 5]

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(warpgroup.compute_registers(WARPGROUPS), action="increase")
            owner, half = lax.div(wg, jnp.int32(parts)), lax.rem(wg, jnp.int32(parts))
            bounds = [plan_ref[batch, block, owner, i] for i in range(6)]
            q, d_out = q_smem.at[owner], d_out_smem.at[owner]
            plgpu.barrier_wait(own.at[owner])
            start, end = (plgpu.load(ranges_smem.at[owner, i], layout=warpgroup.ROWS) for i in range(2))
            lse, delta = (plgpu.load(rows_smem.at[owner, i], layout=warpgroup.ROWS) for i in range(2))

            def skip(tile: jax.Array) -> None:
                k_ring.skip(tile - lo)
                v_ring.skip(tile - lo)

            def add(tile: jax.Array, d_q: jax.Array, masked: bool) -> jax.Array:
                step, shape = tile - lo, (queries, width)
                slot = k_ring.slot(step)
                k_ring.wait(step)
                v_ring.wait(step)
                scores, d_weights = warpgroup.products((q, k_smem.at[slot]), (d_out, v_smem.at[slot]), shape=shape)
                v_ring.give_back(step)
                x, factor = warpgroup.in_base_2(scores, scale, softcap)
                d_scores = jnp.exp2(x * factor - over_columns(lse, shape)) * (d_weights - over_columns(delta, shape))
                if softcap:
                    d_scores = d_scores * (1.0 - x * x)
                if masked:  # where nothing is seen it may be infinite, or NaN
                    d_scores = jnp.where(warpgroup.seen(start, end, tile * width, shape, keys_axis=1), d_scores, 0.0)
                stage = [x.at[wg] for x in staged]
                operand = warpgroup.operand(d_scores.astype(dtype), stage)
                [d_q] = warpgroup.summed(lambda ref: plgpu.wgmma(ref, operand, k_smem.at[slot, half]), d_q, staged=stage)
                k_ring.give_back(step)
                return d_q

            d_q = warpgroup.walk(bounds, add, skip, warpgroup.zeros(queries, columns))
            if parts > 1:  # both have read the queries before their gradient takes the place
                plgpu.barrier_arrive(done)
                plgpu.barrier_wait(done)
            q.at[half][...] = (d_q * scale).astype(dtype)
            plgpu.commit_smem()
            rows = pl.ds((owners * block + owner) * queries, queries)
            plgpu.copy_smem_to_gmem(q.at[half], d_q_ref.at[batch, rows, head, pl.ds(half * columns, columns)])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(warpgroup.MEMORY_REGISTERS, action="decrease")
            for i in range(owners):
                tile = owners * block + i
                for ref, smem in ((q_ref, q_smem), (d_out_ref, d_out_smem)):
                    warpgroup.copy_parts(ref, smem.at[i], own.at[i], batch, tile * queries, head)
                plgpu.copy_gmem_to_smem(ranges_ref.at[batch, tile], ranges_smem.at[i], own.at[i])
                plgpu.copy_gmem_to_smem(rows_ref.at[batch, head, tile], rows_smem.at[i], own.at[i])

            @pl.loop(0, hi - lo)
            def _fill(step: jax.Array) -> None:
                kv_head = lax.div(head, jnp.int32(N // K))
                for ring, ref, smem in ((k_ring, k_ref, k_smem), (v_ring, v_ref, v_smem)):
                    ring.free(step)
                    slot = ring.slot(step)
                    warpgroup.copy_parts(ref, smem.at[slot], ring.ready.at[slot], batch, (lo + step) * width, kv_head)

            k_ring.drain(hi - lo)
            v_ring.drain(hi - lo)

    smem = [
        *[warpgroup.matrix(owners, parts, queries, columns, dtype=dtype)] * 2,
        *[warpgroup.matrix(stages, parts, width, columns, dtype=dtype)] * 2,
        plgpu.SMEM((owners, 2, queries), jnp.int32),
        plgpu.SMEM((owners, 2, queries), jnp.float32),
    ]
    if interpreted:
        smem.append(warpgroup.matrix(WARPGROUPS, queries, width, dtype=dtype))
    ring = Ring.barriers(stages, copies=parts, warpgroups=WARPGROUPS)
    barriers = (
        plgpu.Barrier(num_arrivals=2 * parts + 2, num_barriers=owners),
        ring,
        ring,
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
        out_type=made(q_BTNH.shape, dtype, q_BTNH),
        scratch_types=(tuple(smem), barriers),
        grid=(count, B, N),
        warpgroups=WARPGROUPS,
        interpreted=interpreted,
    )
