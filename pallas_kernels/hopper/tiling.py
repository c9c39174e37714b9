"""How large the tiles of each kernel are, and how many of them are in flight.

Accumulators have to stay in the registers of a warpgroup, and rings in 227 KiB of shared memory. `pallas_kernels.tuning` has
the sizes in use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels import tuning

HEAD_WIDTHS = (64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """queries, keys: of one tile of scores, which one warpgroup holds. stages: tiles on their way from memory or in use."""

    queries: int
    keys: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The tiles of the forward pass, of the gradients of queries, and of those of keys and values."""

    forward: Blocks
    dq: Blocks
    dkv: Blocks


def tiling_for(head_width: int, dtype: Any, length: int, *, device: str = "NVIDIA H200") -> Tiling:
    """The tiles for a head width of 64, 128 or 256, a dtype of 16 bits, and queries and keys up to a length.

    Raises ValueError for other widths and dtypes.
    """
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        raise ValueError(f"Hopper attention: expected bfloat16 or float16, found {jnp.dtype(dtype)}")
    if head_width not in HEAD_WIDTHS:
        expected = f"a head width of {HEAD_WIDTHS}"
        raise ValueError(f"Hopper attention: expected {expected}, found {head_width}; pad the heads with zeros")
    found = tuning.tiles("hopper", device, dtype, head_width, length)
    return Tiling(**{way: Blocks(*numbers) for way, numbers in found.items()})
