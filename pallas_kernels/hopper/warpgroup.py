"""What the kernels have in common: products on a warpgroup, logits in base 2, and the walk over the tiles that a mask leaves.

A block of threads is some warpgroups that compute and one that has the next tiles copied to shared memory (Shah et al. 2024,
section 3.1). The latter fills a ring of stages; a stage is filled again once every computing warpgroup has given it back.
So every warpgroup takes every tile of its block, also those that only the other one needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ranges import KeyRanges, Tiles

LOG2E = math.log2(math.e)
ROWS = plgpu.Layout.WGMMA.reduce(1)  # one value per row of a product
COLUMNS = plgpu.Layout.WGMMA.reduce(0)
MEMORY_REGISTERS = 24  # for each thread of the warpgroup that copies: the least there may be


def matrix(*shape: int, dtype: Any) -> Any:
    """Shared memory for matrices that are operands of products; the last two axes are rows and columns."""
    tiled, swizzled = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tiled, swizzled))


def launched(
    kernel: Callable[..., None],
    *operands: jax.Array,
    out_type: Any,
    scratch_types: Any,
    grid: tuple[int, int, int],
    warpgroups: int,
    interpreted: Any,
) -> Any:
    """What a kernel returns. grid: blocks of threads for a row and head, rows of the batch, heads.

    A block has `warpgroups` that compute, and one that copies.
    """
    run = plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=grid,
        grid_names=("blocks", "batch", "heads"),
        num_threads=warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpreted,
    )
    return run(*operands)


def interpreter(interpret: Any) -> Any:
    """Parameters of the interpreter where a kernel is to be interpreted, else None."""
    return plgpu.InterpretGPUParams() if interpret is True else interpret or None


def padded(x: jax.Array) -> jax.Array:
    """Positions in eights, which matrices in shared memory are tiled by; copies clip what a tile has beyond them."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, 0))) if x.shape[1] % 8 else x


def registers(warpgroups: int) -> int:
    """For each thread of so many warpgroups, of those that a block is started with: they are had in eights."""
    return 65536 // (128 * warpgroups) // 8 * 8


def compute_registers(warpgroups: int) -> int:
    """For each thread of so many warpgroups that compute, once the one that copies has given up what it does not need.

    What they ask for between them must not be more than what the block was started with: an increase waits until there are so
    many (PTX ISA, setmaxnreg), here for ever. The interpreter knows no registers.
    """
    rest = registers(warpgroups + 1) * (warpgroups + 1) - MEMORY_REGISTERS
    return min(256, rest // warpgroups) // 8 * 8


def split(head_width: int) -> tuple[int, int]:
    """Parts and columns of each: so many as a warpgroup of the backward pass has registers to sum."""
    return max(1, head_width // 128), min(head_width, 128)


def zeros(rows: int, columns: int) -> jax.Array:
    """A float32 accumulator."""
    return plgpu.layout_cast(jnp.zeros((rows, columns), jnp.float32), plgpu.Layout.WGMMA)


def filled(rows: int, value: float) -> jax.Array:
    """float32, one value per row of an accumulator."""
    return plgpu.layout_cast(jnp.full((rows,), value, jnp.float32), ROWS)


def over_columns(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value per row, repeated along the columns."""
    return lax.broadcast_in_dim(x, shape, [0])


def over_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value per column, repeated along the rows."""
    return lax.broadcast_in_dim(x, shape, [1])


def operand(x: jax.Array, staged: list[Any]) -> Any:
    """The left operand of a product: x in registers, or in the interpreter, which takes none there, in what is staged."""
    if not staged:
        return x
    staged[0][...] = x
    plgpu.commit_smem()
    return staged[0]


def summed(products: Callable[..., None], *sums: jax.Array, staged: list[Any]) -> list[jax.Array]:
    """sums and what `products`, called with their accumulators, adds to them; waits for all of it.

    The interpreter knows no accumulator that already holds something.
    """
    if staged:

        def fresh(*refs: Any) -> list[jax.Array]:
            products(*refs)
            return [ref[...] for ref in refs]

        found = pl.run_scoped(fresh, *(plgpu.ACC((x.shape[0], x.shape[1]), jnp.float32) for x in sums))
        return [before + x for before, x in zip(sums, found, strict=True)]
    return list(pl.run_state(lambda refs: products(*refs))(tuple(plgpu.ACC.init(x) for x in sums)))


def products(*pairs: tuple[Any, Any], shape: tuple[int, int]) -> list[jax.Array]:
    """left @ right.T of each pair, both in shared memory with their columns in parts, [parts, rows, columns].

    All are begun before the first is waited for.
    """

    def multiply(*refs: Any) -> list[jax.Array]:
        for ref, (left, right) in zip(refs, pairs, strict=True):
            add_product(ref, left, right)
        return [ref[...] for ref in refs]

    return pl.run_scoped(multiply, *(plgpu.ACC(shape, jnp.float32) for _ in pairs))


def add_product(ref: Any, left: Any, right: Any) -> None:
    """One of them, added to an accumulator."""
    for part in range(left.shape[0]):
        plgpu.wgmma(ref, left.at[part], right.at[part].transpose((1, 0)))


def copy_parts(ref: Any, smem: Any, barrier: Any, batch: jax.Array, row: jax.Array, head: jax.Array) -> None:
    """Has rows of a head copied to shared memory [parts, rows, columns]; each part arrives at the barrier."""
    parts, rows, columns = smem.shape
    for part in range(parts):
        source = ref.at[batch, pl.ds(row, rows), head, pl.ds(part * columns, columns)]
        plgpu.copy_gmem_to_smem(source, smem.at[part], barrier)


def in_base_2(scores: jax.Array, scale: float, softcap: float) -> tuple[jax.Array, float]:
    """x and c, such that exp2(x * c) is the exponential of the logits: one multiply-add with what is subtracted from it."""
    if softcap:
        return jnp.tanh(scores * (scale / softcap)), softcap * LOG2E
    return scores, scale * LOG2E


def seen(start: jax.Array, end: jax.Array, first: jax.Array, shape: tuple[int, ...], *, keys_axis: int) -> jax.Array:
    """Which scores of a tile count, where keys from `first` on lie along an axis and the ranges of queries along the other."""
    key = plgpu.broadcasted_iota(jnp.int32, shape, keys_axis, layout=plgpu.Layout.WGMMA)
    start, end = (lax.broadcast_in_dim(x - first, shape, [1 - keys_axis]) for x in (start, end))
    return (key >= start) & (key < end)


# ---- the walk over tiles ---------------------------------------------------------------------------------------------


def cut_ranges(ranges: KeyRanges, size: int, tiles: int) -> jax.Array:
    """int32 [B, tiles, 2, size], start and end; what fills up the last tile is like the last query, as in `key_tiles`."""
    x = jnp.stack(ranges, axis=1)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, tiles * size - x.shape[2])), mode="edge")
    return jnp.swapaxes(x.reshape(x.shape[0], 2, tiles, size), 1, 2)


def cut_rows(values_BTN: tuple[jax.Array, ...], size: int, tiles: int) -> jax.Array:
    """float32 [B, N, tiles, values, size]; zeros fill up the last tile."""
    x = jnp.stack(values_BTN, axis=1).astype(jnp.float32)
    B, values, T, N = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, tiles * size - T), (0, 0)))
    return jnp.transpose(x.reshape(B, values, tiles, size, N), (0, 4, 2, 1, 3))


def walks(tiles: Tiles, warpgroups: int) -> jax.Array:
    """For `warpgroups` tiles in a row, which are one block of threads, what each meets: int32 [B, blocks, warpgroups, 6].

    lo, first, full_first, full_last, last, hi: lo and hi are the block's.
    """
    filled = -tiles.first.shape[1] % warpgroups
    bounds = [jnp.pad(x, ((0, 0), (0, filled))).reshape(x.shape[0], -1, warpgroups) for x in tiles]
    first, last = bounds[0], bounds[1]
    some = first < last
    hi = jnp.max(jnp.where(some, last, 0), axis=-1, keepdims=True)
    lo = jnp.min(jnp.where(some, first, hi), axis=-1, keepdims=True)
    first, last, full_first, full_last = (jnp.clip(x, lo, hi) for x in bounds)
    return jnp.stack(jnp.broadcast_arrays(lo, first, full_first, full_last, last, hi), axis=-1)


def walk(bounds: list[jax.Array], step: Callable, skip: Callable, carry: Any) -> Any:
    """`step(tile, carry, masked)` over the tiles that this warpgroup meets, `skip(tile)` over the others of its block."""
    lo, first, full_first, full_last, last, hi = bounds

    def masked(tile: jax.Array, carry: Any) -> Any:
        return step(tile, carry, True)

    pl.loop(lo, first)(skip)
    carry = lax.fori_loop(first, full_first, masked, carry)
    carry = lax.fori_loop(full_first, full_last, lambda tile, carry: step(tile, carry, False), carry)
    carry = lax.fori_loop(full_last, last, masked, carry)
    pl.loop(last, hi)(skip)
    return carry


class Ring:
    """The stages of one operand: filled by the memory warpgroup in order of steps, given back by those that compute."""

    def __init__(self, stages: int, ready: Any, used: Any) -> None:
        self.stages, self.ready, self.used = stages, ready, used

    @staticmethod
    def barriers(stages: int, *, copies: int, warpgroups: int) -> tuple[Any, Any]:
        """Scratch types for `ready`, which `copies` arrive at for a step, and `used`, at which each warpgroup does."""
        ready = plgpu.Barrier(num_arrivals=copies, num_barriers=stages)
        return ready, plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages)

    def slot(self, step: jax.Array) -> jax.Array:
        """The stage of a step."""
        return lax.rem(step, jnp.int32(self.stages))

    def wait(self, step: jax.Array) -> None:
        """Until the stage of this step is filled."""
        plgpu.barrier_wait(self.ready.at[self.slot(step)])

    def give_back(self, step: jax.Array) -> None:
        """This warpgroup reads the stage no more."""
        plgpu.barrier_arrive(self.used.at[self.slot(step)])

    def skip(self, step: jax.Array) -> None:
        """Also what is not needed has to have arrived: two copies in flight to one stage would mix up its barrier."""
        self.wait(step)
        self.give_back(step)

    def free(self, step: jax.Array) -> None:
        """Until the stage of this step may be filled; at first all may."""
        pl.when(step >= self.stages)(lambda: plgpu.barrier_wait(self.used.at[self.slot(step)]))

    def drain(self, steps: jax.Array) -> None:
        """Until all is given back."""

        @pl.loop(jnp.maximum(steps - self.stages, 0), steps)
        def _wait(step: jax.Array) -> None:
            plgpu.barrier_wait(self.used.at[self.slot(step)])
