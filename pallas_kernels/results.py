"""The results of a kernel, as it has to be told them beforehand."""

from __future__ import annotations

import jax


def made(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: jax.Array) -> jax.ShapeDtypeStruct:
    """What a kernel returns; inside `jax.shard_map` it varies over the mesh as `like` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
