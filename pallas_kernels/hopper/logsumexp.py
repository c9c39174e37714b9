"""Log-sum-exp of a head's logits on Hopper: a product of matrices whose result is read where it is made, and never stored.

A block of threads has 128 positions, 64 for each of two warpgroups that compute, and goes over its part of the vocabulary 256
ids at a time; a third has activations and head copied, 64 columns at a time. The two may run apart by as many stages as there
are, so that one multiplies matrices while the other takes exponentials. The vocabulary is split where there are few positions.

There is none for the gradients: their sums, [64, D] in float32, are more than a warpgroup has registers for.

Axes: T position, D model, V vocabulary, X split.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper import warpgroup
from pallas_kernels.hopper.decode import splits_for
from pallas_kernels.hopper.warpgroup import Ring, over_columns
from pallas_kernels.reference import LOWEST, MASKED
from pallas_kernels.results import made

WARPGROUPS = 2
ROWS, IDS, COLUMNS, STAGES = 64, 256, 64, 4  # of a warpgroup's tile of logits, of one copy, and copies on their way or in use
BLOCKS = 132  # of threads that run at once: their shared memory leaves room for one on a multiprocessor


def logsumexp(
    x_TD: jax.Array,
    head_VD: jax.Array,
    vocab: jax.Array | int,
    *,
    softcap: float,
    splits: int | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Log-sum-exp of each position's logits x . head over the first `vocab` ids, float32 [T]; -1e30 where there are none.

    x and head: bfloat16 or float16, D a multiple of 64, else ValueError. vocab may be traced. softcap: c * tanh(logits / c); 0
    is off. splits: of the vocabulary; None for as many as keep the card busy.
    """
    T, (V, D) = x_TD.shape[0], head_VD.shape
    if D % COLUMNS:
        raise ValueError(f"logsumexp: expected a model whose width is a multiple of {COLUMNS}, found {D}")
    blocks, tiles, steps = pl.cdiv(T, WARPGROUPS * ROWS), pl.cdiv(V, IDS), D // COLUMNS
    splits = splits or splits_for(blocks, tiles, at_once=BLOCKS)
    each = pl.cdiv(tiles, splits)
    x = jnp.pad(x_TD, ((0, -T % 8), (0, 0))) if T % 8 else x_TD
    head = jnp.pad(head_VD, ((0, -V % 8), (0, 0))) if V % 8 else head_VD
    limit = jnp.clip(jnp.asarray(vocab, jnp.int32), 0, V).reshape(1)

    def kernel(*refs: Any) -> None:
        x_ref, head_ref, limit_ref, lse_ref, x_smem, head_smem, lse_smem, barriers = refs
        ring = Ring(STAGES, *barriers)
        wg, block, split = (lax.axis_index(name) for name in ("wg", "blocks", "splits"))
        known = limit_ref[0]
        lo = split * each
        hi = jnp.minimum(jnp.minimum(lo + each, tiles), lax.div(known + IDS - 1, jnp.int32(IDS)))
        full = jnp.clip(lax.div(known, jnp.int32(IDS)), lo, jnp.maximum(lo, hi))  # tiles below need no mask

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(warpgroup.compute_registers(WARPGROUPS), action="increase")

            def add(tile: jax.Array, carry: tuple, masked: bool) -> tuple:
                peak, total = carry
                first = (tile - lo) * steps

                def product(ref: Any) -> jax.Array:
                    @pl.loop(0, steps)
                    def _multiply(step: jax.Array) -> None:
                        ring.wait(first + step)
                        slot = ring.slot(first + step)
                        plgpu.wgmma(ref, x_smem.at[slot, wg], head_smem.at[slot].transpose((1, 0)))
                        plgpu.wgmma_wait(1)  # for the one before, whose stage may be filled again
                        pl.when(step > 0)(lambda: ring.give_back(first + step - 1))

                    return ref[...]

                logits = pl.run_scoped(product, plgpu.ACC((ROWS, IDS), jnp.float32))
                ring.give_back(first + steps - 1)
                y, factor = warpgroup.in_base_2(logits, 1.0, softcap)
                if masked:
                    ids = plgpu.broadcasted_iota(jnp.int32, y.shape, 1, layout=plgpu.Layout.WGMMA) + tile * IDS
                    y = jnp.where(ids < known, y, MASKED / factor)
                higher = jnp.maximum(peak, jnp.max(y, axis=1) * factor)
                weights = jnp.exp2(y * factor - over_columns(higher, y.shape))
                return higher, total * jnp.exp2(peak - higher) + jnp.sum(weights, axis=1)

            carry = warpgroup.filled(ROWS, LOWEST), warpgroup.filled(ROWS, 0.0)
            carry = lax.fori_loop(lo, full, lambda tile, carry: add(tile, carry, False), carry)
            peak, total = lax.fori_loop(full, jnp.maximum(lo, hi), lambda tile, carry: add(tile, carry, True), carry)
            empty = total == 0.0
            lse = jnp.where(empty, MASKED, (peak + jnp.log2(jnp.where(empty, 1.0, total))) / warpgroup.LOG2E)
            lse_smem.at[wg][...] = lse
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(lse_smem.at[wg], lse_ref.at[split, block, wg])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(warpgroup.MEMORY_REGISTERS, action="decrease")
            count = jnp.maximum(hi - lo, 0) * steps

            @pl.loop(0, count)
            def _fill(step: jax.Array) -> None:
                columns = pl.ds(lax.rem(step, jnp.int32(steps)) * COLUMNS, COLUMNS)
                ring.free(step)
                slot = ring.slot(step)
                for i in range(WARPGROUPS):
                    rows = pl.ds((WARPGROUPS * block + i) * ROWS, ROWS)
                    plgpu.copy_gmem_to_smem(x_ref.at[rows, columns], x_smem.at[slot, i], ring.ready.at[slot])
                ids = pl.ds((lo + lax.div(step, jnp.int32(steps))) * IDS, IDS)
                plgpu.copy_gmem_to_smem(head_ref.at[ids, columns], head_smem.at[slot], ring.ready.at[slot])

            ring.drain(count)

    lse_XT = plgpu.kernel(
        kernel,
        out_type=made((splits, blocks, WARPGROUPS, ROWS), jnp.float32, x_TD),
        scratch_types=(
            warpgroup.matrix(STAGES, WARPGROUPS, ROWS, COLUMNS, dtype=x.dtype),
            warpgroup.matrix(STAGES, IDS, COLUMNS, dtype=x.dtype),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            Ring.barriers(STAGES, copies=WARPGROUPS + 1, warpgroups=WARPGROUPS),
        ),
        grid=(splits, blocks),
        grid_names=("splits", "blocks"),
        num_threads=WARPGROUPS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=warpgroup.interpreter(interpret),
    )(x, head, limit).reshape(splits, -1)
    lse_T, peak_T = jax.nn.logsumexp(lse_XT, axis=0), jnp.max(lse_XT, axis=0)
    return jnp.where(peak_T <= MASKED, MASKED, lse_T)[:T]
