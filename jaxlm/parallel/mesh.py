"""The device mesh. All four axes always exist, with size 1 when unused, so that there is one code path."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxlm.config.schema import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `cfg.size` devices with axes `MESH_AXES`, all of `AxisType.Explicit`.

    Explicit axes make the sharding of every array part of its type: an ambiguous contraction is an error at trace time,
    not a silent all-reduce. devices: those of the process by default, of which the first `cfg.size` are used.
    Raises ConfigError where there are fewer.
    """
    available = list(jax.devices()) if devices is None else list(devices)
    shape = tuple(getattr(cfg, axis) for axis in MESH_AXES)
    needed = math.prod(shape)
    if needed > len(available):
        largest = max(MESH_AXES, key=lambda axis: getattr(cfg, axis))
        raise ConfigError(
            f"mesh.{largest}",
            f"a mesh of at most {len(available)} devices ({shape} = {needed})",
            getattr(cfg, largest),
        )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES), devices=available[:needed])
