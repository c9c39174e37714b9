"""How large the tiles of each kernel are, and how many of them are in flight.

The sizes are those whose accumulators stay in the registers of a warpgroup and whose rings fit 227 KiB of shared memory; which
of these is fastest, only the card can tell.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

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


def default_tiling(head_width: int, dtype: Any) -> Tiling:
    """The tiles for a head width of 64, 128 or 256 and a dtype of 16 bits; ValueError for others."""
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        raise ValueError(f"Hopper attention: expected bfloat16 or float16, found {jnp.dtype(dtype)}")
    if head_width == 64:
        return Tiling(forward=Blocks(64, 128, 3), dq=Blocks(64, 128, 3), dkv=Blocks(128, 64, 2))
    if head_width == 128:
        return Tiling(forward=Blocks(64, 128, 2), dq=Blocks(64, 64, 2), dkv=Blocks(64, 64, 2))
    if head_width == 256:
        return Tiling(forward=Blocks(64, 64, 2), dq=Blocks(64, 64, 2), dkv=Blocks(64, 64, 2))
    raise ValueError(f"Hopper attention: expected a head width of {HEAD_WIDTHS}, found {head_width}; pad the heads with zeros")
