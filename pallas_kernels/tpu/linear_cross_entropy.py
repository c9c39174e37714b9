"""Cross-entropy of a head on TPUs: logits are made a tile at a time, in a core's memory, and made again for the gradients.

Logits are held as [vocabulary, position], so that what belongs to a position, its log-sum-exp and its label, is a row of lanes.
One kernel sums the gradient of the activations over the vocabulary, another that of the head over the positions (Wijmans et al.
2024, Cut Your Losses, without its atomics).

Axes: T position, D model, V vocabulary, I tile of positions, J tile of the vocabulary.
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
from pallas_kernels.tpu.tiling import filled, fitted, product, scores_of

MEMORY = 40 << 20  # bytes of a core that the tiles of a kernel may take: a v5p has 64 MB


def logsumexp(
    x_TD: jax.Array, head_VD: jax.Array, vocab: jax.Array | int, *, softcap: float, interpret: Any = False
) -> jax.Array:
    """Log-sum-exp of each position's logits x . head over the first `vocab` ids, float32 [T]; -1e30 where there are none.

    x and head are of one dtype, bfloat16 or float32; vocab may be traced. softcap: c * tanh(logits / c); 0 is off.
    """
    T, (V, D) = x_TD.shape[0], head_VD.shape
    positions, ids = _tiles(T, V, D, x_TD.dtype)
    x = filled(x_TD, 0, positions)
    I, J = len(x) // positions, pl.cdiv(V, ids)
    row = pltpu.VMEM((1, positions), jnp.float32)
    [lse_1T] = pl.pallas_call(
        functools.partial(_logsumexp, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(I, J),
            in_specs=[pl.BlockSpec((positions, D), lambda i, j, *_: (i, 0)), pl.BlockSpec((ids, D), lambda i, j, *_: (j, 0))],
            out_specs=[pl.BlockSpec((1, positions), lambda i, j, *_: (0, i))],
            scratch_shapes=[row, row],
        ),
        out_shape=[made((1, len(x)), jnp.float32, x_TD)],
        compiler_params=_in_order(),
        interpret=interpret,
        name="head_logsumexp",
    )(_limit(vocab, V), x, head_VD)
    return lse_1T[0, :T]


def gradients(
    x_TD: jax.Array,
    head_VD: jax.Array,
    labels_T: jax.Array,
    vocab: jax.Array | int,
    lse_T: jax.Array,
    d_lse_T: jax.Array,
    d_label_T: jax.Array,
    *,
    softcap: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x and head, float32, from those by the log-sum-exp and by the logit of the label of each position.

    lse may be that of more ids than are given here: then the gradients are the part of these. A label that is none of the first
    `vocab` ids has no logit here. The rest is as in `logsumexp`.
    """
    T, (V, D) = x_TD.shape[0], head_VD.shape
    positions, ids = _tiles(T, V, D, x_TD.dtype)
    x = filled(x_TD, 0, positions)
    rows = (filled(a[None], 1, positions) for a in (labels_T.astype(jnp.int32), lse_T, d_lse_T, d_label_T))
    I, J = len(x) // positions, pl.cdiv(V, ids)
    given = _limit(vocab, V), x, head_VD, *rows

    def summed(name: str, kernel: Any, grid: tuple[int, int], i: Any, j: Any, size: int, out: tuple[int, int]) -> jax.Array:
        """i, j: which tiles a place of the grid reads. size: of the tile that stays, whose gradient is the result."""
        return pl.pallas_call(
            functools.partial(kernel, softcap=softcap, ids=V),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=grid,
                in_specs=[
                    pl.BlockSpec((positions, D), lambda *at: (i(*at), 0)),
                    pl.BlockSpec((ids, D), lambda *at: (j(*at), 0)),
                    *[pl.BlockSpec((1, positions), lambda *at: (0, i(*at)))] * 4,
                ],
                out_specs=pl.BlockSpec((size, D), lambda a, b, *_: (a, 0)),
            ),
            out_shape=made(out, jnp.float32, x_TD),
            compiler_params=_in_order(),
            interpret=interpret,
            name=name,
        )(*given)

    def outer(a: Any, b: Any, *_: Any) -> Any:
        return a

    def inner(a: Any, b: Any, *_: Any) -> Any:
        return b

    d_x = summed("head_dx", _by_positions, (I, J), outer, inner, positions, (len(x), D))
    d_head = summed("head_dw", _by_ids, (J, I), inner, outer, ids, (V, D))
    return d_x[:T], d_head


def _tiles(T: int, V: int, D: int, dtype: Any) -> tuple[int, int]:
    """Positions and ids of a tile: as many as a core has memory for, up to 1024 by 512.

    The largest need is that of the gradient of the head: both operands and the result twice, as the next ones are on their way,
    and the logits some four times over.
    """
    width = jnp.dtype(dtype).itemsize
    for positions, ids in ((1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128)):
        if 2 * D * width * (positions + ids) + 8 * D * max(positions, ids) + 16 * positions * ids <= MEMORY:
            break
    return fitted(positions, T), fitted(ids, V)


def _limit(vocab: jax.Array | int, V: int) -> jax.Array:
    return jnp.clip(jnp.asarray(vocab, jnp.int32), 0, V).reshape(1)


def _in_order() -> Any:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=MEMORY + (16 << 20))


def _logits(x: Any, head: Any, tile: Any, limit: Any, softcap: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits of a tile [V, T], capped and with -1e30 for ids from the limit on; those ids [V, T]; and which of them count."""
    logits_VT = scores_of(head[...], x[...], scale=1.0, softcap=softcap)
    id_VT = tile * head.shape[0] + jax.lax.broadcasted_iota(jnp.int32, logits_VT.shape, 0)
    counts_VT = id_VT < limit[0]
    return jnp.where(counts_VT, logits_VT, MASKED), id_VT, counts_VT


def _logsumexp(limit: Any, x: Any, head: Any, lse: Any, peak_1T: Any, total_1T: Any, *, softcap: float) -> None:
    j = pl.program_id(1)

    @pl.when(j == 0)
    def begin() -> None:
        peak_1T[...] = jnp.full_like(peak_1T, LOWEST)
        total_1T[...] = jnp.zeros_like(total_1T)

    logits_VT, _, _ = _logits(x, head, j, limit, softcap)
    higher_1T = jnp.maximum(peak_1T[...], jnp.max(logits_VT, axis=0, keepdims=True))
    weights_1T = jnp.sum(jnp.exp(logits_VT - higher_1T), axis=0, keepdims=True)
    total_1T[...] = total_1T[...] * jnp.exp(peak_1T[...] - higher_1T) + weights_1T
    peak_1T[...] = higher_1T

    @pl.when(j == pl.num_programs(1) - 1)
    def finish() -> None:
        empty = total_1T[...] == 0.0
        lse[...] = jnp.where(empty, MASKED, peak_1T[...] + jnp.log(jnp.where(empty, 1.0, total_1T[...])))


def _d_logits(limit: Any, tile: Any, given: tuple, softcap: float) -> jax.Array:
    """Gradients by a tile of logits before the cap, [V, T], in the dtype of x."""
    x, head, label, lse, d_lse, d_label = given
    logits_VT, id_VT, counts_VT = _logits(x, head, tile, limit, softcap)
    d_VT = jnp.exp(logits_VT - lse[...]) * d_lse[...] + jnp.where(id_VT == label[...], d_label[...], 0.0)
    if softcap:
        d_VT = d_VT * (1.0 - jnp.square(logits_VT / softcap))
    return jnp.where(counts_VT, d_VT, 0.0).astype(x.dtype)


def _by_positions(limit: Any, *refs: Any, softcap: float, ids: int) -> None:
    *given, d_x = refs
    j, head = pl.program_id(1), given[1][...]

    @pl.when(j == 0)
    def begin() -> None:
        d_x[...] = jnp.zeros_like(d_x)

    d_VT = _d_logits(limit, j, tuple(given), softcap)
    if ids % head.shape[0]:  # the last tile ends beyond the head, where there may be NaN
        there = j * head.shape[0] + jax.lax.broadcasted_iota(jnp.int32, (head.shape[0], 1), 0) < ids
        head = jnp.where(there, head, jnp.zeros_like(head))
    d_x[...] += product(d_VT, head, (0, 0))


def _by_ids(limit: Any, *refs: Any, softcap: float, ids: int) -> None:
    *given, d_head = refs

    @pl.when(pl.program_id(1) == 0)
    def begin() -> None:
        d_head[...] = jnp.zeros_like(d_head)

    d_VT = _d_logits(limit, pl.program_id(0), tuple(given), softcap)
    d_head[...] += product(d_VT, given[0][...], (1, 0))
