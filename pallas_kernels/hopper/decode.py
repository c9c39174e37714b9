"""Attention of one query per sequence over a paged cache, on Hopper: the keys of a sequence are split over many blocks.

Reading the cache is what takes the time, so that the query heads of a group share one reading of their keys: they are the rows
of one matrix product, filled up to the 64 that it takes. Every split returns its output in float32 with its log-sum-exp, and
they are combined by these (Dao et al. 2023, Flash-Decoding).

A split is one warpgroup's. A block of threads has as many of these as registers and shared memory allow, so that one waits for
its exponentials while the other multiplies, and one more that has the keys and values of all copied.

Axes: B sequence, N query head, K key/value head, G query heads per key/value head, H head width, P page, S key of a page,
M page of a sequence, X split.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper import warpgroup
from pallas_kernels.hopper.warpgroup import Ring, over_columns
from pallas_kernels.reference import LOWEST, MASKED
from pallas_kernels.results import made

ROWS = 64  # of a product
KEYS = 64  # of a tile: the least that a product takes as its inner axis
BLOCKS = 132  # of threads that run at once: shared memory leaves room for one on a multiprocessor
WARPGROUPS = {64: 2, 128: 2, 256: 1}  # of a block that compute, by head width
STAGES = {64: 5, 128: 3, 256: 2}  # of each of them


def decode(
    q_BNH: jax.Array,
    k_pages_PSKH: jax.Array,
    v_pages_PSKH: jax.Array,
    block_tables_BM: jax.Array,
    starts_B: jax.Array,
    lengths_B: jax.Array,
    *,
    scale: float,
    softcap: float,
    splits: int | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """out_BNH in the dtype of the values and lse_BN in float32, of keys starts_B <= s < lengths_B; 0 and -1e30 where none is.

    Key s of sequence b is key s % S of page block_tables_BM[b, s // S]. Pages past the length, and keys of the last page past
    it, may hold anything, NaN included. S: a multiple of 8 that divides 64, or a multiple of 64; N: at most 64 K; H: 64, 128 or
    256; q, k, v: bfloat16 or float16; ValueError for other S and N. splits: at least so many; None for as many as keep the card
    busy. How many they are alters the last bits of sums.
    """
    B, N, H = q_BNH.shape
    P, S, K = k_pages_PSKH.shape[:3]
    M, G = block_tables_BM.shape[1], N // K
    if G > ROWS or (KEYS % S and S % KEYS) or S % 8:
        expected = f"at most {ROWS} query heads per key head, and pages of 8, 16, 32 or n * {KEYS} keys"
        raise ValueError(f"decode: expected {expected}, found {G} and {S}")
    warpgroups, stages = WARPGROUPS[H], STAGES[H]
    blocks = pl.cdiv(splits, warpgroups) if splits else splits_for(B * K, pl.cdiv(M * S, KEYS * warpgroups))
    splits, chunk, kept = blocks * warpgroups, min(S, KEYS), pl.cdiv(G, 8) * 8
    starts, ends = jnp.clip(starts_B, 0), jnp.clip(lengths_B, 0, M * S)
    plan_BX4 = _plan(starts, ends, splits)
    dtype = q_BNH.dtype

    def kernel(*refs: Any) -> None:
        q_ref, k_ref, v_ref, table_ref, bounds_ref, plan_ref, out_ref, lse_ref, smem, barriers = refs
        own, k_barriers, v_barriers, done = barriers
        q_smem, v_smem, lse_smem, (k_smem, out_smem), *staged = smem
        k_ring, v_ring = (Ring(stages * warpgroups, *pair) for pair in (k_barriers, v_barriers))
        batch, kv_head, wg = (lax.axis_index(name) for name in ("batch", "heads", "wg"))
        first_split = warpgroups * lax.axis_index("splits")

        def step_of(i: jax.Array, wg: Any) -> jax.Array:
            """Of the i-th tile of a warpgroup: they take turns in the stages, each has its own."""
            return warpgroups * i + wg

        @pl.when(wg < warpgroups)
        def _compute() -> None:
            first, last = bounds_ref[batch, 0], bounds_ref[batch, 1]
            split = first_split + wg
            lo, full_first, full_last, hi = (plan_ref[batch, split, i] for i in range(4))
            stage = [x.at[wg] for x in staged]
            plgpu.barrier_wait(own)

            def attend(tile: jax.Array, carry: tuple, masked: bool) -> tuple:
                step = step_of(tile - lo, wg)
                sums, peak, total = carry
                k_ring.wait(step)

                def product(ref: Any) -> jax.Array:
                    plgpu.wgmma(ref, q_smem, k_smem.at[k_ring.slot(step)].transpose((1, 0)))
                    return ref[...]

                scores = pl.run_scoped(product, plgpu.ACC((ROWS, KEYS), jnp.float32))
                k_ring.give_back(step)
                x, factor = warpgroup.in_base_2(scores, scale, softcap)
                if masked:
                    x = jnp.where(_within(tile, first, last, x.shape, keys_axis=1), x, MASKED / factor)
                higher = jnp.maximum(peak, jnp.max(x, axis=1) * factor)
                weights = jnp.exp2(x * factor - over_columns(higher, x.shape))
                fade = jnp.exp2(peak - higher)
                total = total * fade + jnp.sum(weights, axis=1)
                sums = sums * over_columns(fade, sums.shape)
                v_ring.wait(step)
                values = v_smem.at[v_ring.slot(step)]
                if masked:  # what is stale may be NaN, which a weight of 0 does not make harmless
                    for column in range(0, H, 64):
                        part = values.at[:, pl.ds(column, 64)]
                        held = plgpu.load(part, layout=plgpu.Layout.WGMMA)
                        counts = _within(tile, first, last, held.shape, keys_axis=0)
                        part[...] = jnp.where(counts, held, jnp.zeros_like(held))
                    plgpu.commit_smem()
                operand = warpgroup.operand(weights.astype(dtype), stage)
                [sums] = warpgroup.summed(lambda ref: plgpu.wgmma(ref, operand, values), sums, staged=stage)
                v_ring.give_back(step)
                return sums, higher, total

            def masked(tile: jax.Array, carry: tuple) -> tuple:
                return attend(tile, carry, True)

            carry = warpgroup.zeros(ROWS, H), warpgroup.filled(ROWS, LOWEST), warpgroup.filled(ROWS, 0.0)
            carry = lax.fori_loop(lo, full_first, masked, carry)
            carry = lax.fori_loop(full_first, full_last, lambda tile, carry: attend(tile, carry, False), carry)
            sums, peak, total = lax.fori_loop(full_last, hi, masked, carry)
            empty = total == 0.0
            safe = jnp.where(empty, 1.0, total)
            plgpu.barrier_arrive(done)
            plgpu.barrier_wait(done)  # nobody reads keys any more, whose place the output takes
            out_smem.at[wg][...] = sums * over_columns(1.0 / safe, sums.shape)
            lse_smem.at[wg][...] = jnp.where(empty, MASKED, (peak + jnp.log2(safe)) / warpgroup.LOG2E)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem.at[wg, pl.ds(0, kept)], out_ref.at[batch, kv_head, split])
            plgpu.copy_smem_to_gmem(lse_smem.at[wg], lse_ref.at[batch, kv_head, split])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == warpgroups)
        def _copy() -> None:
            plgpu.copy_gmem_to_smem(q_ref.at[batch, kv_head], q_smem, own)
            starts = [plan_ref[batch, first_split + w, 0] for w in range(warpgroups)]
            counts = [plan_ref[batch, first_split + w, 3] - lo for w, lo in enumerate(starts)]

            def fill(tile: jax.Array, step: jax.Array) -> None:
                for ring, ref, smem in ((k_ring, k_ref, k_smem), (v_ring, v_ref, v_smem)):
                    ring.free(step)
                    slot = ring.slot(step)
                    for first in range(0, KEYS, chunk):
                        key = tile * KEYS + first
                        page = table_ref[batch, jnp.minimum(lax.div(key, jnp.int32(S)), M - 1)]
                        page = jnp.clip(page, 0, P - 1)  # beyond the length it may be anything
                        part = (page, pl.ds(lax.rem(key, jnp.int32(S)), chunk), kv_head)
                        plgpu.copy_gmem_to_smem(ref.at[part], smem.at[slot, pl.ds(first, chunk)], ring.ready.at[slot])

            @pl.loop(0, functools.reduce(jnp.maximum, counts))
            def _fill(i: jax.Array) -> None:
                for w in range(warpgroups):
                    pl.when(i < counts[w])(functools.partial(fill, starts[w] + i, step_of(i, w)))

            for w, count in enumerate(counts):

                @pl.loop(jnp.maximum(count - stages, 0), count)
                def _drain(i: jax.Array, w: int = w) -> None:
                    for ring in (k_ring, v_ring):
                        plgpu.barrier_wait(ring.used.at[ring.slot(step_of(i, w))])

    interpreted = warpgroup.interpreter(interpret)
    tiles = warpgroup.matrix(stages * warpgroups, KEYS, H, dtype=dtype)
    over = (tiles, plgpu.SMEM((warpgroups, ROWS, H), jnp.float32))
    smem = [
        warpgroup.matrix(ROWS, H, dtype=dtype),
        tiles,
        plgpu.SMEM((warpgroups, ROWS), jnp.float32),
        over if interpreted else plgpu.RefUnion(*over),
    ]
    if interpreted:
        smem.append(warpgroup.matrix(warpgroups, ROWS, KEYS, dtype=dtype))
    ring = Ring.barriers(stages * warpgroups, copies=KEYS // chunk, warpgroups=1)
    q_BKGH = jnp.pad(q_BNH.reshape(B, K, G, H), ((0, 0), (0, 0), (0, ROWS - G), (0, 0)))
    out_BKXGH, lse_BKXG = plgpu.kernel(
        kernel,
        out_type=(
            made((B, K, splits, kept, H), jnp.float32, q_BNH),
            made((B, K, splits, ROWS), jnp.float32, q_BNH),
        ),
        scratch_types=(tuple(smem), (plgpu.Barrier(), ring, ring, plgpu.Barrier(num_arrivals=warpgroups))),
        grid=(B, blocks, K),
        grid_names=("batch", "splits", "heads"),
        num_threads=warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpreted,
    )(q_BKGH, k_pages_PSKH, v_pages_PSKH, block_tables_BM, jnp.stack((starts, ends), axis=-1), plan_BX4)
    return _combined(out_BKXGH[:, :, :, :G], lse_BKXG[..., :G], v_pages_PSKH.dtype)


def splits_for(rows: int, tiles: int, *, at_once: int = BLOCKS) -> int:
    """Into how many parts each of `rows` is split, of so many tiles: the fewest that keep the card nearly as busy as any.

    As many blocks of threads as there is room for run at once; where a few are left over, most of the card waits for these. The
    rule is that of FlashAttention-2's decoding.
    """

    def busy(splits: int) -> float:
        rounds = rows * splits / at_once
        return rounds / math.ceil(rounds)

    numbers = range(1, max(1, min(tiles, at_once)) + 1)
    most = max(busy(n) for n in numbers)
    return next(n for n in numbers if busy(n) >= 0.85 * most)


def _within(tile: jax.Array, first: jax.Array, last: jax.Array, shape: tuple[int, ...], *, keys_axis: int) -> jax.Array:
    """Which keys of a tile the sequence sees, repeated along the other axis."""
    key = plgpu.broadcasted_iota(jnp.int32, shape, keys_axis, layout=plgpu.Layout.WGMMA) + tile * KEYS
    return (key >= first) & (key < last)


def _plan(starts_B: jax.Array, ends_B: jax.Array, splits: int) -> jax.Array:
    """The tiles of each split, and which of them need no mask: int32 [B, X, 4], lo, full_first, full_last, hi."""
    starts, ends = starts_B[:, None], jnp.maximum(starts_B, ends_B)[:, None]
    first, last = starts // KEYS, jnp.where(starts < ends, -(-ends // KEYS), starts // KEYS)
    each = -(-(last - first) // splits)
    lo = jnp.minimum(first + each * jnp.arange(splits, dtype=jnp.int32)[None], last)
    hi = jnp.minimum(lo + each, last)
    full_first = jnp.clip(-(-starts // KEYS), lo, hi)
    full_last = jnp.clip(ends // KEYS, full_first, hi)
    return jnp.stack((lo, full_first, full_last, hi), axis=-1).astype(jnp.int32)


def _combined(out_BKXGH: jax.Array, lse_BKXG: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Parts of an attention over disjoint keys, as one: each weighs as much as the exponentials of its scores sum up to."""
    B, K, _, G, H = out_BKXGH.shape
    highest = jnp.max(lse_BKXG, axis=2)
    weights = jnp.exp(lse_BKXG - highest[:, :, None])
    total = jnp.sum(weights, axis=2)
    out = jnp.sum(out_BKXGH * weights[..., None], axis=2) / total[..., None]
    lse = jnp.where(highest <= MASKED, MASKED, highest + jnp.log(total))
    return out.astype(dtype).reshape(B, K * G, H), lse.reshape(B, K * G)
