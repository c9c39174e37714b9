"""Every configuration of the kernels lowers for TPUs here, and with libtpu compiles to their machine code."""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import KeyRanges, tpu, tuning

KINDS = {"v5e:2x2": "TPU v5 lite", "v5p:2x2x1": "TPU v5", "v6e:2x2": "TPU v6 lite"}


def cases():
    """Width, length, dtype and cap: every row of the table at the widest heads and the longest sequences that it is for."""
    for row in tuning.rows("tpu"):
        for dtype, softcap in (("bfloat16", 0.0), ("float32", 30.0)):
            width, length = row.width or 512, row.length or 16384
            if tuning.tiles("tpu", "TPU v5e", dtype, width, length) is row.tiles:
                yield width, length - 37, dtype, softcap


CASES = [*cases(), (64, 1100, "bfloat16", 30.0), (96, 9000, "float32", 0.0)]


def device(kind):
    found = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=found))


def programs(width, length, dtype, softcap, struct=jax.ShapeDtypeStruct):
    """Name, function and operands of each kernel. Lengths are no multiples of tiles."""
    B, T, S, N, K = 2, length // 2, length, 4, 2
    options = {"scale": width**-0.5, "softcap": softcap}
    tiled = {**options, "tiling": tpu.tiling_for(width, dtype, length)}
    q, k, row = struct((B, T, N, width), dtype), struct((B, S, K, width), dtype), struct((B, T, N), jnp.float32)
    ranges = KeyRanges(*[struct((B, T), jnp.int32)] * 2)
    pages, bounds = struct((32, 128, K, width), dtype), [struct((B,), jnp.int32)] * 2
    yield "attention_forward", functools.partial(tpu.forward, **tiled), (q, k, k, ranges)
    yield "attention_dkv", functools.partial(tpu.backward, **tiled), (q, k, k, ranges, row, row, q)
    operands = (struct((B, N, width), dtype), pages, pages, struct((B, 9), jnp.int32), *bounds)
    yield "attention_decode", functools.partial(tpu.decode, **options), operands


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize(("width", "length", "dtype", "softcap"), CASES)
def test_it_lowers(kind, width, length, dtype, softcap):
    with device(kind):
        for name, function, operands in programs(width, length, dtype, softcap):
            text = jax.jit(function).trace(*operands).lower(lowering_platforms=("tpu",)).as_text()
            assert "tpu_custom_call" in text
            assert name in text


@pytest.mark.aot
@pytest.mark.parametrize("topology", KINDS)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install libtpu")
def test_it_compiles_to_machine_code(topology):
    """In a process of its own: libtpu stays in the one that has started it."""
    variables = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", f"from tests.pallas_kernels.tpu.test_lowering import compiled; compiled({topology!r})"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 3 * len(CASES)


def compiled(topology):
    """Compile all for the first device of a topology: what fits a core's memory is known only then."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    described = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    assert described.device_kind == KINDS[topology], described.device_kind
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(described))
    with device(described.device_kind):
        for case in CASES:
            for name, function, operands in programs(*case, struct=struct):
                jax.jit(function).trace(*operands).lower().compile()
                print("compiled", name, *case)
