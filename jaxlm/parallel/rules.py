"""Logical-axis rules: which mesh axes each letter of a weight and of an activation is laid on.

Weights and activations are named apart, since the same letter may be sharded in one and whole in the other. A weight has
two layouts: how it is stored (`weight`), and how it is used (`used`), in which the axes that also shard the batch are
gathered: the explicit form of fully sharded data parallelism. The transpose of that gather sums the gradient over the
devices and leaves each its part, which XLA makes one reduce-scatter where its backend can (not on a CPU).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import ConfigError, MeshConfig
from jaxlm.contract import InputError
from jaxlm.parallel import products
from jaxlm.parallel.mesh import MESH_AXES
from pallas_kernels import matmul_precision

Axes = tuple[str, ...]


class Spec(Protocol):
    """What the rules read of a parameter: its shape, one letter an axis, its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""

    @property
    def dims(self) -> str:
        """A letter of `jaxlm.axes.ALPHABET` for each axis."""

    @property
    def dtype(self) -> str:
        """The name of its dtype."""


@dataclass(frozen=True)
class AxisRules:
    """Mesh axes of every logical axis, as tuples; an empty tuple is "whole on every device". None has a default.

    Fields `a_*` are of activations, `w_*` of weights; the letter is that of `jaxlm.axes.ALPHABET`.
    """

    a_A: Axes
    a_B: Axes
    a_T: Axes
    a_S: Axes
    a_D: Axes
    a_N: Axes
    a_K: Axes
    a_G: Axes
    a_H: Axes
    a_F: Axes
    a_V: Axes
    w_L: Axes
    w_D: Axes
    w_N: Axes
    w_K: Axes
    w_H: Axes
    w_F: Axes
    w_V: Axes

    def activation(self, dims: str) -> P:
        """PartitionSpec of an activation with the letters `dims`."""
        return self._spec("a_", dims)

    def weight(self, dims: str) -> P:
        """PartitionSpec of a weight as it is stored."""
        return self._spec("w_", dims)

    def used(self, dims: str) -> P:
        """PartitionSpec of a weight as it is used: the axes that shard the batch are gathered."""
        stored = self._spec("w_", dims)
        gathered = [tuple(axis for axis in _axes(entry) if axis not in self.a_B) for entry in stored]
        return P(*(_entry(axes) for axes in gathered))

    @property
    def gathers(self) -> bool:
        """Whether any weight is stored in more shards than it is used in."""
        return any(axis in self.a_B for f in dataclasses.fields(self) if f.name[0] == "w" for axis in getattr(self, f.name))

    def _spec(self, prefix: str, dims: str) -> P:
        axes = [getattr(self, prefix + letter) for letter in dims]
        flat = [axis for entry in axes for axis in entry]
        if len(flat) != len(set(flat)):
            raise InputError(f"rules: {prefix}{dims} lays two dimensions on one mesh axis: {axes}")
        return P(*(_entry(entry) for entry in axes))

    # ---- what the model calls; each is the identity where no mesh is set ----

    def gather(self, weight: jax.Array, dims: str) -> jax.Array:
        """A stored weight in the layout of its use."""
        return weight if _no_mesh() else jax.sharding.reshard(weight, self.used(dims))

    def shared(self, x: jax.Array, dims: str, letter: str) -> jax.Array:
        """An activation that several products read, with weights that are sharded along `letter`.

        The gradients of the products are parts of sums over the shards. Read through this, the parts are added first and
        travel once (Shoeybi et al. 2019, section 3, the conjugate operator f).
        """
        axes = frozenset(axis for axis in getattr(self, f"w_{letter}") if axis not in self.a_B)
        return x if _no_mesh() or not axes else jax.sharding.reshard(x, P(*self.activation(dims), reduced=axes))

    def einsum(self, equation: str, *operands: jax.Array, **options: Any) -> jax.Array:
        """`jnp.einsum` whose result is an activation, laid out by the letters after the arrow; float32 is float32."""
        layout = None if _no_mesh() else self.activation(equation.split("->")[1])
        if len(operands) == 2 and not options and products.suits(*operands, equation):
            return checkpoint_name(products.product(layout, *operands), products.NAME)
        if layout is not None:
            options["out_sharding"] = layout
        return jnp.einsum(equation, *operands, precision=matmul_precision(*operands), **options)

    def rows(self, table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        """Rows of a table (used layout) by id, as an activation [B, T, D]."""
        if _no_mesh():
            return table_VD[ids_BT]
        return table_VD.at[ids_BT].get(out_sharding=self.activation("BTD"))

    # ---- validation and the printed table ----

    def check(self, specs: Mapping[str, Spec], mesh: MeshConfig) -> None:
        """Raise ConfigError for a mesh axis on which nothing is laid, whose devices would all compute the same, and
        InputError for a dimension that its mesh axes do not divide, naming the nearest size that works."""
        laid = {axis for f in dataclasses.fields(self) for axis in getattr(self, f.name)}
        for axis in MESH_AXES:
            if getattr(mesh, axis) > 1 and axis not in laid:
                raise ConfigError(f"mesh.{axis}", f"1, as --mesh.rules {mesh.rules} lays nothing on it", getattr(mesh, axis))
        for path, spec in specs.items():
            for letter, size, entry in zip(spec.dims, spec.shape, self.weight(spec.dims), strict=True):
                shards = math.prod(getattr(mesh, axis) for axis in _axes(entry))
                if size % shards:
                    nearest = shards * max(1, round(size / shards))
                    raise InputError(
                        f"{path}: axis {letter} has size {size}, which {shards} shards ({'*'.join(_axes(entry))}) do not "
                        f"divide; the nearest size that works is {nearest}"
                    )

    def table(self, specs: Mapping[str, Spec], mesh: MeshConfig) -> list[tuple[str, str, str, str, int]]:
        """Rows (path, dims, shape, layout, bytes per device) of every parameter. layout: `D:fsdp N:tensor`, or `whole`."""
        rows = []
        for path, spec in specs.items():
            laid = {letter: _axes(entry) for letter, entry in zip(spec.dims, self.weight(spec.dims), strict=True)}
            shards = math.prod(getattr(mesh, axis) for axes in laid.values() for axis in axes)
            size = math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize // shards
            layout = " ".join(f"{letter}:{'*'.join(axes)}" for letter, axes in laid.items() if axes) or "whole"
            rows.append((path, spec.dims, str(list(spec.shape)), layout, size))
        return rows


def _axes(entry: Any) -> Axes:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _entry(axes: Axes) -> str | Axes | None:
    if not axes:
        return None
    return axes[0] if len(axes) == 1 else axes


def _no_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().empty


def _rules(**axes: Axes) -> AxisRules:
    every = {f.name: axes.get(f.name, ()) for f in dataclasses.fields(AxisRules)}
    return AxisRules(**every)


_TENSOR: dict[str, Axes] = {name: ("tensor",) for name in ("a_N", "a_K", "a_F", "a_V", "w_N", "w_K", "w_F", "w_V")}
# Every preset cuts the sequence over `context`: positions of queries, and of the keys that travel to them.
_CONTEXT: dict[str, Axes] = {"a_T": ("context",), "a_S": ("context",)}

PRESETS: dict[str, AxisRules] = {
    "single": _rules(**_CONTEXT),
    "dp": _rules(a_B=("data",), **_CONTEXT),
    "fsdp": _rules(a_B=("data", "fsdp"), w_D=("fsdp",), **_CONTEXT),
    "tp": _rules(a_B=("data",), **_TENSOR, **_CONTEXT),
    "fsdp_tp": _rules(a_B=("data", "fsdp"), w_D=("fsdp",), **_TENSOR, **_CONTEXT),
}


def rules_of(cfg: MeshConfig, kv_heads: int = 0) -> AxisRules:
    """The preset that a config names, for a model with so many key/value heads (0: not told).

    Where the tensor shards do not divide the key/value heads, every shard makes all of them, and each of its query heads
    reads the one that it needs (`jaxlm.model.attention`): with fewer heads than shards, some have to be on several anyway.
    """
    rules = PRESETS[cfg.rules]
    if rules.w_K and kv_heads % math.prod(getattr(cfg, axis) for axis in rules.w_K):
        return dataclasses.replace(rules, a_K=(), w_K=())
    return rules


def sharding(mesh: Mesh, spec: P) -> NamedSharding:
    """`spec` on `mesh`, with every mesh axis known."""
    unknown = {axis for entry in spec for axis in _axes(entry)} - set(MESH_AXES)
    if unknown:
        raise InputError(f"unknown mesh axes {sorted(unknown)}; expected some of {MESH_AXES}")
    return NamedSharding(mesh, spec)
