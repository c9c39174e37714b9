"""How the kernels for TPUs cut queries and keys into tiles, and what they share of reading and masking one.

Axes: B batch, T query, S key, N query head, K key/value head, H head width, I tile of queries, J tile of keys.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from pallas_kernels.reference import MASKED, matmul_precision

LANES = 128  # a tile's last axis is a multiple of it


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Queries and keys of a tile, of the forward kernel and of those for the gradients: multiples of 128, on a TPU."""

    queries: int
    keys: int
    queries_back: int
    keys_back: int


def tiling_for(head_width: int, dtype: jax.typing.DTypeLike, length: int, *, device: str = "TPU v5e") -> Tiling:
    """The tiles for heads of a width, and queries and keys up to a length.

    Of blocks of 128 a v5e makes 4 % of its rate (jax issue 24633), and a kernel has some 16 MB of a core's memory.
    """
    found = tuning.tiles("tpu", device, dtype, head_width, length)
    return Tiling(*found["forward"], *found["backward"])


def fitted(tile: int, length: int) -> int:
    """A tile no longer than the lanes that `length` takes up."""
    return min(tile, -(-length // LANES) * LANES)


def filled(x: jax.Array, axis: int, tile: int) -> jax.Array:
    """`x` with zeros at the end of an axis, up to whole tiles."""
    missing = -x.shape[axis] % tile
    return jnp.pad(x, [(0, missing if a == axis % x.ndim else 0) for a in range(x.ndim)]) if missing else x


def product(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, summed and returned in float32."""
    return jax.lax.dot_general(
        a,
        b,
        ((contracted[:1], contracted[1:]), ((), ())),
        precision=matmul_precision(a, b),
        preferred_element_type=jnp.float32,
    )


def scores_of(k_SH: jax.Array, q_TH: jax.Array, *, scale: float, softcap: float) -> jax.Array:
    """[S, T], float32, capped and not masked."""
    scores_ST = product(k_SH, q_TH, (1, 1)) * scale
    return softcap * jnp.tanh(scores_ST / softcap) if softcap else scores_ST


def seen_by(start_1T: jax.Array, end_1T: jax.Array, first: jax.Array, keys: int) -> jax.Array:
    """Which keys, from `first` on, the queries see: [S, T]."""
    s = first + jax.lax.broadcasted_iota(jnp.int32, (keys, start_1T.shape[1]), 0)
    return (s >= start_1T) & (s < end_1T)


def masked(scores_ST: jax.Array, seen_ST: jax.Array | None) -> jax.Array:
    """Scores with -1e30 for what is not seen; None: all is."""
    return scores_ST if seen_ST is None else jnp.where(seen_ST, scores_ST, MASKED)
