"""Devices that should hold the same bits and do not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.contract import ContractError
from jaxlm.watch.replicas import require_equal_replicas

MESH = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
WEIGHT = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)


def array(change, *spec):
    """The weight laid out by `spec`, with `change(part, index of the device)` made to each device's buffer."""
    sharding = NamedSharding(MESH, P(*spec))
    parts = sharding.devices_indices_map(WEIGHT.shape)
    buffers = [jax.device_put(change(WEIGHT[parts[d]].copy(), i), d) for i, d in enumerate(MESH.devices.flat)]
    return jax.make_array_from_single_device_arrays(WEIGHT.shape, sharding, buffers)


def flipped(bit, on):
    """The lowest bits of one element of the buffer of device `on` changed."""

    def change(part, device):
        if device == on:
            part.view(np.uint32)[0, 2] ^= np.uint32(bit)
        return part

    return change


def same(part, device):
    return part


@pytest.mark.parametrize("spec", [(), ("fsdp",), (None, "data"), ("fsdp", "data"), (("data", "fsdp"),)])
def test_a_healthy_array_of_any_layout_passes(spec):
    require_equal_replicas({"w": array(same, *spec)}, artifact="state")


def test_one_buffer_that_differs_in_the_last_bit_is_named():
    bad = array(flipped(1, on=5))
    assert bad.is_fully_replicated  # so jax believes
    tree = {"fine": array(same), "params": {"w": bad}}
    with pytest.raises(ContractError, match=r"params/w: [0-9a-f]{16} on 7 devices, [0-9a-f]{16} on cpu:5\b") as caught:
        require_equal_replicas(tree, artifact="runs/x after step 7")
    assert caught.value.contract == "replicas"
    assert caught.value.artifact == "runs/x after step 7"
    assert "fine" not in str(caught.value)


def test_a_shard_is_compared_with_the_same_shard_of_the_other_replica():
    with pytest.raises(ContractError, match=r"w: [0-9a-f]{16} on cpu:2, [0-9a-f]{16} on cpu:6\b"):
        require_equal_replicas({"w": array(flipped(1, on=6), "fsdp")}, artifact="state")


def test_what_one_device_alone_holds_has_nothing_to_be_compared_with():
    require_equal_replicas({"w": array(flipped(1, on=6), ("data", "fsdp")), "u": WEIGHT_ALONE}, artifact="state")


WEIGHT_ALONE = jax.device_put(WEIGHT, jax.devices()[0])


def test_a_key_that_differs_is_named_as_well():
    sharding = NamedSharding(MESH, P())
    keys = [jax.device_put(jax.random.key(i == 3), device) for i, device in enumerate(MESH.devices.flat)]
    bad = jax.make_array_from_single_device_arrays((), sharding, keys)
    with pytest.raises(ContractError, match=r"key: \w+ on 7 devices, \w+ on cpu:3"):
        require_equal_replicas({"key": bad}, artifact="state")


def test_many_leaves_are_counted():
    tree = {f"w{i}": array(flipped(1, on=1)) for i in range(8)}
    with pytest.raises(ContractError, match=r"w4: .*; and 3 more\. "):
        require_equal_replicas(tree, artifact="state")


PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxlm.contract import ContractError
from jaxlm.watch.replicas import require_equal_replicas

jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
whole = np.arange(48, dtype=np.float32).reshape(8, 6)

def array(spec, on):
    sharding, buffers = NamedSharding(mesh, spec), []
    for device, part in sharding.addressable_devices_indices_map(whole.shape).items():
        held = whole[part].copy()
        held.view(np.uint32)[0, 0] ^= np.uint32(device == on)
        buffers.append(jax.device_put(held, device))
    return jax.make_array_from_single_device_arrays(whole.shape, sharding, buffers)

require_equal_replicas({"w": array(P("fsdp"), None), "v": array(P(), None)}, artifact="state")
for spec in (P("fsdp"), P()):
    try:
        require_equal_replicas({"w": array(spec, mesh.devices[1, 1])}, artifact="state")
    except ContractError as error:
        print(error.found)
"""


@pytest.mark.slow
def test_two_processes_find_the_same_replica_of_one_of_them():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", PROCESS, port]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).resolve().parents[2], "env": environment}
    started = [subprocess.Popen([*command, str(index)], **options) for index in range(2)]
    try:
        first, second = ([line for line in p.communicate(timeout=120)[0].splitlines() if "(process" in line] for p in started)
    finally:
        for process in started:
            process.kill()
    assert first == second
    sharded, whole = first
    assert sharded.count("(process 0)") == sharded.count("(process 1)") == 1
    assert whole.count("(process 0)") == 2
    assert whole.count("(process 1)") == 2
    assert whole.endswith("(process 1)")
