"""Attention on Hopper, forward: a tile of queries stays with a warpgroup, the keys and values stream past it.

FlashAttention-3 without its overlap inside a warpgroup (Shah et al. 2024, section 3.1 and algorithm 1): one warpgroup copies,
two compute, and take turns, so that one multiplies matrices while the other takes exponentials.

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
from pallas_kernels.hopper.tiling import Tiling
from pallas_kernels.hopper.warpgroup import Ring, over_columns
from pallas_kernels.ranges import KeyRanges, key_tiles
from pallas_kernels.reference import LOWEST, MASKED
from pallas_kernels.results import made

WARPGROUPS = 2


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array,
    end_BT: jax.Array,
    *,
    scale: float,
    softcap: float,
    tiling: Tiling,
    statistics: bool = True,
    interpret: Any = False,
) -> tuple[jax.Array, ...]:
    """Output in the dtype of the values and log-sum-exp, peak and mean of the scores in float32, as `reference.Attended` has
    them; without `statistics` the first two alone.

    q, k, v: bfloat16 or float16, H of 64, 128 or 256, N a multiple of K. scale: positive, of the scores before the softcap.
    interpret: True or `plgpu.InterpretGPUParams`, to run on a CPU. tanh is the card's own, with a relative error of 2**-11.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    size, keys, stages = tiling.forward.queries, tiling.forward.keys, tiling.forward.stages
    blocks = pl.cdiv(T, WARPGROUPS * size)
    kinds = 3 if statistics else 1
    ranges = KeyRanges(start_BT, end_BT).within(S)  # keys past the last are read as zeros and must not count
    plan = warpgroup.walks(key_tiles(ranges, S, queries_per_tile=size, keys_per_tile=keys), WARPGROUPS)
    q_BTNH, k_BSKH, v_BSKH = (warpgroup.padded(x) for x in (q_BTNH, k_BSKH, v_BSKH))
    dtype = q_BTNH.dtype

    def kernel(*refs: Any) -> None:
        q_ref, k_ref, v_ref, ranges_ref, plan_ref, out_ref, rows_ref, smem, (own, k_barriers, v_barriers, turns) = refs
        q_smem, k_smem, v_smem, ranges_smem, rows_smem, *staged = smem
        k_ring, v_ring = Ring(stages, *k_barriers), Ring(stages, *v_barriers)
        wg, batch, head = lax.axis_index("wg"), lax.axis_index("batch"), lax.axis_index("heads")
        block = blocks - 1 - lax.axis_index("blocks")  # with a causal mask the longest first
        lo, hi = plan_ref[batch, block, 0, 0], plan_ref[batch, block, 0, 5]

        def change() -> None:
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(warpgroup.compute_registers(WARPGROUPS), action="increase")
            bounds = [plan_ref[batch, block, wg, i] for i in range(6)]
            q, rows = q_smem.at[wg], rows_smem.at[wg]
            plgpu.barrier_wait(own.at[wg])
            start, end = (plgpu.load(ranges_smem.at[wg, i], layout=warpgroup.ROWS) for i in range(2))
            pl.when(lo < hi)(lambda: k_ring.wait(jnp.int32(0)))
            pl.when(wg == 1)(change)  # waits until the other one has begun

            def wait_for_next(step: jax.Array) -> None:
                pl.when(step + 1 < hi - lo)(lambda: k_ring.wait(step + 1))

            def skip(tile: jax.Array) -> None:
                step = tile - lo
                k_ring.give_back(step)
                change()
                v_ring.skip(step)
                change()
                wait_for_next(step)

            def attend(tile: jax.Array, carry: tuple, masked: bool) -> tuple:
                step = tile - lo
                sums, peak, total, moment = carry

                def product(ref: Any) -> jax.Array:
                    plgpu.wgmma(ref, q, k_smem.at[k_ring.slot(step)].transpose((1, 0)))
                    change()
                    return ref[...]

                scores = pl.run_scoped(product, plgpu.ACC((size, keys), jnp.float32))
                k_ring.give_back(step)
                x, factor = warpgroup.in_base_2(scores, scale, softcap)
                if masked:
                    counts = warpgroup.seen(start, end, tile * keys, (size, keys), keys_axis=1)
                    x = jnp.where(counts, x, MASKED / factor)
                higher = jnp.maximum(peak, jnp.max(x, axis=1) * factor)
                weights = jnp.exp2(x * factor - over_columns(higher, x.shape))
                fade = jnp.exp2(peak - higher)
                total = total * fade + jnp.sum(weights, axis=1)
                if statistics:
                    moment = moment * fade + jnp.sum(weights * x, axis=1)
                sums = sums * over_columns(fade, sums.shape)
                # All of this before the other one may use the tensor cores.
                sums, higher, total, moment, weights = lax.optimization_barrier(
                    (sums, higher, total, moment, weights.astype(dtype))
                )
                plgpu.barrier_arrive(turns)
                v_ring.wait(step)
                plgpu.barrier_wait(turns)
                values = v_smem.at[v_ring.slot(step)]
                stage = [x.at[wg] for x in staged]
                operand = warpgroup.operand(weights, stage)

                def add(ref: Any) -> None:
                    plgpu.wgmma(ref, operand, values)
                    wait_for_next(step)

                [sums] = warpgroup.summed(add, sums, staged=stage)
                v_ring.give_back(step)
                return sums, higher, total, moment

            nothing = warpgroup.filled(size, 0.0)
            carry = (warpgroup.zeros(size, H), warpgroup.filled(size, LOWEST), nothing, nothing)
            sums, peak, total, moment = warpgroup.walk(bounds, attend, skip, carry)
            pl.when(wg == 0)(change)

            empty = total == 0.0
            safe = jnp.where(empty, 1.0, total)
            q[...] = (sums * over_columns(1.0 / safe, sums.shape)).astype(dtype)
            rows.at[0][...] = jnp.where(empty, MASKED, (peak + jnp.log2(safe)) / warpgroup.LOG2E)
            if statistics:
                rows.at[1][...] = jnp.where(empty, MASKED, peak / warpgroup.LOG2E)
                rows.at[2][...] = moment / safe * (softcap or scale)
            plgpu.commit_smem()
            tile = WARPGROUPS * block + wg
            plgpu.copy_smem_to_gmem(q, out_ref.at[batch, pl.ds(tile * size, size), head])
            plgpu.copy_smem_to_gmem(rows, rows_ref.at[batch, head, tile])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(warpgroup.MEMORY_REGISTERS, action="decrease")
            for i in range(WARPGROUPS):
                tile = WARPGROUPS * block + i
                plgpu.copy_gmem_to_smem(q_ref.at[batch, pl.ds(tile * size, size), head], q_smem.at[i], own.at[i])
                plgpu.copy_gmem_to_smem(ranges_ref.at[batch, tile], ranges_smem.at[i], own.at[i])

            @pl.loop(0, hi - lo)
            def _fill(step: jax.Array) -> None:
                part = (batch, pl.ds((lo + step) * keys, keys), lax.div(head, jnp.int32(N // K)))
                for ring, ref, smem in ((k_ring, k_ref, k_smem), (v_ring, v_ref, v_smem)):
                    ring.free(step)
                    slot = ring.slot(step)
                    plgpu.copy_gmem_to_smem(ref.at[part], smem.at[slot], ring.ready.at[slot])

            k_ring.drain(hi - lo)
            v_ring.drain(hi - lo)

    interpreted = warpgroup.interpreter(interpret)
    smem = [
        warpgroup.matrix(WARPGROUPS, size, H, dtype=dtype),
        *[warpgroup.matrix(stages, keys, H, dtype=dtype)] * 2,
        plgpu.SMEM((WARPGROUPS, 2, size), jnp.int32),
        plgpu.SMEM((WARPGROUPS, kinds, size), jnp.float32),
    ]
    if interpreted:
        smem.append(warpgroup.matrix(WARPGROUPS, size, keys, dtype=dtype))
    ring = Ring.barriers(stages, copies=1, warpgroups=WARPGROUPS)
    own = plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS)
    tiles = WARPGROUPS * blocks
    out_BTNH, rows = warpgroup.launched(
        kernel,
        q_BTNH,
        k_BSKH,
        v_BSKH,
        warpgroup.cut_ranges(ranges, size, tiles),
        plan,
        out_type=(
            made(q_BTNH.shape, dtype, q_BTNH),
            made((B, N, tiles, kinds, size), jnp.float32, q_BTNH),
        ),
        scratch_types=(tuple(smem), (own, ring, ring, plgpu.Barrier(num_arrivals=WARPGROUPS))),
        grid=(blocks, B, N),
        warpgroups=WARPGROUPS,
        interpreted=interpreted,
    )
    rows_BTN = (jnp.transpose(rows[:, :, :, i], (0, 2, 3, 1)).reshape(B, -1, N)[:, :T] for i in range(kinds))
    return out_BTNH[:, :T], *rows_BTN
