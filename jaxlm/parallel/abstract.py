"""A mesh without devices: programs are traced on it as on any other, and no device is looked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import MeshConfig
from jaxlm.parallel.mesh import MESH_AXES


def abstract_mesh(cfg: MeshConfig) -> AbstractMesh:
    """The mesh that `make_mesh` makes of `cfg`, as axes and sizes alone."""
    shape = tuple(getattr(cfg, axis) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


@contextmanager
def traced_on(cfg: MeshConfig) -> Iterator[AbstractMesh]:
    """Within it, what is traced is traced on the abstract mesh of `cfg`."""
    mesh = abstract_mesh(cfg)
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def laid_out(mesh: AbstractMesh, shape: Sequence[int], dtype: str, spec: P) -> jax.ShapeDtypeStruct:
    """An array that does not exist, laid out on a mesh that does not exist."""
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))
