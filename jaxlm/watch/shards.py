"""What `shard_map` and its collectives do, by hand, on lists of the arrays of all shards, all of them on one device.

A position is a shard's index along every mesh axis that is cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

Position = dict[str, int]

_REDUCTIONS = {
    "psum": jnp.add, "psum_invariant": jnp.add, "unreduced_psum": jnp.add, "reduce_scatter": jnp.add,
    "unreduced_reduce_scatter": jnp.add, "pmax": jnp.maximum, "unreduced_pmax": jnp.maximum, "pmin": jnp.minimum,
    "unreduced_pmin": jnp.minimum,
}  # fmt: skip


def positions(axes: Mapping[str, int]) -> list[Position]:
    """Every position on a mesh of these axes and sizes, the last axis first."""
    return [dict(zip(axes, index, strict=True)) for index in itertools.product(*map(range, axes.values()))]


def cut(array: Any, spec: Any, position: Position, axes: Mapping[str, int]) -> Any:
    """The part of `array` that the shard at `position` holds under a PartitionSpec, of which only `axes` cut."""
    starts, sizes = [], []
    for dimension, size in enumerate(array.shape):
        names = _names(spec, dimension, axes)
        shards = math.prod(axes[name] for name in names)
        starts.append(_index(position, names, axes) * (size // shards))
        sizes.append(size // shards)
    part = array if tuple(sizes) == array.shape else _slice(array, tuple(starts), tuple(sizes))
    # Of what is still to be summed over an axis, the whole lies on its first shard.
    return jnp.zeros_like(part) if any(position[name] for name in _unreduced(spec, axes)) else part


def join(parts: Sequence[Any], where: Sequence[Position], spec: Any, axes: Mapping[str, int]) -> Any:
    """The inverse of `cut`: the array of which the shards at the positions `where` hold the parts."""
    return _joined(list(zip(where, parts, strict=True)), spec, axes, 0)


def _joined(parts: list[tuple[Position, Any]], spec: Any, axes: Mapping[str, int], dimension: int) -> Any:
    if dimension == parts[0][1].ndim:
        unreduced = _unreduced(spec, axes)
        first = {name: 0 for name in axes if name not in unreduced}
        return reduce(jnp.add, [part for position, part in parts if first.items() <= position.items()])
    names = _names(spec, dimension, axes)
    if not names:
        return _joined(parts, spec, axes, dimension + 1)
    pieces = []
    for index in range(math.prod(axes[name] for name in names)):
        here = [(position, part) for position, part in parts if _index(position, names, axes) == index]
        pieces.append(_joined([({**p, **dict.fromkeys(names, 0)}, part) for p, part in here], spec, axes, dimension + 1))
    return jnp.concatenate(pieces, axis=dimension)


def collective(name: str, params: Mapping[str, Any], operands: Sequence[Any], where: Sequence[Position]) -> list[Any]:
    """The results of one collective on all shards that take part in it, given the operand of each.

    where: their positions, which must be whole groups along the collective's axes. Raises NotImplementedError for groups within
    an axis, which `shard_map` has none of.
    """
    if params.get("axis_index_groups") is not None:
        raise NotImplementedError(f"replay: expected {name} over whole mesh axes, found axis_index_groups")
    axes = axes_of(params)
    results: list[Any] = [None] * len(operands)
    for members in groups(axes, where):
        made = _within(name, params, [operands[member] for member in members])
        for member, result in zip(members, made, strict=True):
            results[member] = result
    return results


def axes_of(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The mesh axes of a collective."""
    axes = params["axes"] if "axes" in params else params["axis_name"]
    return (axes,) if isinstance(axes, str) else tuple(axes)


def groups(axes: Sequence[str], where: Sequence[Position]) -> list[list[int]]:
    """The shards that communicate along `axes`, each group in the order of its index along them."""
    found: dict[tuple, list[int]] = {}
    for shard, position in enumerate(where):
        found.setdefault(tuple(index for axis, index in position.items() if axis not in axes), []).append(shard)
    return [sorted(group, key=lambda shard: [where[shard][axis] for axis in axes]) for group in found.values()]


def _within(name: str, params: Mapping[str, Any], group: list[Any]) -> list[Any]:
    """The results of one group, whose members come in the order of their index."""
    if name == "axis_index":
        return [jnp.int32(index) for index in range(len(group))]
    if name in ("reduce_scatter", "unreduced_reduce_scatter"):
        return _parts(reduce(jnp.add, group), params["scatter_dimension"], len(group), params["tiled"])
    if name in _REDUCTIONS:
        return [reduce(_REDUCTIONS[name], group)] * len(group)
    if name.startswith("all_gather"):
        join = jnp.concatenate if params["tiled"] else jnp.stack
        return [join(group, axis=params["all_gather_dimension"])] * len(group)
    if name == "ppermute":
        sent = {target: group[source] for source, target in params["perm"]}
        return [sent.get(index, jnp.zeros_like(group[0])) for index in range(len(group))]
    if name == "all_to_all":
        # Tiled, whatever it is told: jax takes the axes of the other form away outside of the primitive.
        cut_up = [_parts(member, params["split_axis"], len(group), True) for member in group]
        return [jnp.concatenate(pieces, axis=params["concat_axis"]) for pieces in zip(*cut_up, strict=True)]
    raise NotImplementedError(f"replay: the collective {name} is not known")


def _parts(array: Any, axis: int, count: int, tiled: bool) -> list[Any]:
    """`count` equal parts along `axis`, which goes where it is not tiled."""
    parts = jnp.split(array, count, axis=axis)
    return parts if tiled else [jnp.squeeze(part, axis) for part in parts]


@partial(jax.jit, static_argnums=2)
def _slice(array: Any, starts: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    return jax.lax.dynamic_slice(array, starts, sizes)


def _names(spec: Any, dimension: int, axes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes that cut a dimension, the outermost first."""
    entry = spec[dimension] if dimension < len(spec) else None
    names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    return tuple(name for name in names if name in axes)


def _unreduced(spec: Any, axes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name in spec.unreduced if name in axes)


def _index(position: Position, names: Sequence[str], axes: Mapping[str, int]) -> int:
    index = 0
    for name in names:
        index = index * axes[name] + position[name]
    return index
