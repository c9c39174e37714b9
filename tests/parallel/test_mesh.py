"""The mesh: four axes always, explicit all, and too few devices are named."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxlm.config.schema import ConfigError, MeshConfig
from jaxlm.parallel import MESH_AXES, make_mesh


def test_the_axes_are_the_sizes_of_the_config_in_its_order():
    assert MESH_AXES == tuple(name for name in vars(MeshConfig()) if name != "rules") == ("data", "fsdp", "tensor", "context")


def test_a_mesh_of_one_device_has_four_axes_of_size_one():
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == dict.fromkeys(MESH_AXES, 1)
    assert mesh.axis_names == MESH_AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 1, 3), (1, 1, 4, 2)])
def test_sizes_stand_in_the_order_of_the_axes_and_devices_are_the_first(sizes):
    mesh = make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True))))
    assert mesh.devices.shape == sizes
    assert set(mesh.devices.flat) == set(jax.devices()[: np.prod(sizes)])


def test_a_mesh_is_made_of_the_devices_that_are_given():
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[5:])
    assert set(mesh.devices.flat) == set(jax.devices()[5:7])


@pytest.mark.parametrize(
    ("sizes", "named"), [({"data": 9}, "data"), ({"fsdp": 4, "tensor": 3}, "fsdp"), ({"context": 16, "data": 2}, "context")]
)
def test_too_few_devices_are_named_with_the_largest_axis(sizes, named):
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    with pytest.raises(ConfigError) as caught:
        make_mesh(MeshConfig(**sizes))
    assert str(caught.value) == (
        f"--mesh.{named}: expected a mesh of at most 8 devices ({shape} = {np.prod(shape)}), found {sizes[named]}"
    )
    with pytest.raises(ConfigError, match="at most 1 devices"):
        make_mesh(MeshConfig(data=2), jax.devices()[:1])
