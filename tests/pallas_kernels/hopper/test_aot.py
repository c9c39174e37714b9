"""The Hopper kernels compile to machine code for an H200 without one, and their accumulators stay in registers.

Needs jax-cuda13-plugin and jax-cuda13-pjrt in the version of jax, and nvidia-cuda-nvcc, whose ptxas counts the registers; none
of them is a dependency. Run with `-m aot`.
"""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("Mosaic GPU kernels need jax 0.11", allow_module_level=True)
if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
    pytest.skip("no jax-cuda13-plugin", allow_module_level=True)

from jax.experimental import topologies

from pallas_kernels.hopper import HEAD_WIDTHS, tiling_for
from pallas_kernels.hopper.backward import backward
from pallas_kernels.hopper.decode import WARPGROUPS, decode
from pallas_kernels.hopper.forward import forward
from pallas_kernels.hopper.logsumexp import logsumexp
from pallas_kernels.hopper.warpgroup import registers
from tests.pallas_kernels.operands import H200 as TARGET
from tests.pallas_kernels.operands import made_for

pytestmark = [pytest.mark.aot, pytest.mark.slow]

B, T, S, N, K = 2, 512, 512, 4, 2

# Public figures of the card; what the code depends on is the compute capability and the shared memory of a block.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 151000000000
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


@pytest.fixture(scope="module")
def device():
    return topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1").devices[0]


@pytest.fixture
def spilled(device, capfd, monkeypatch):
    """spilled(function, *shapes, warpgroups=3): bytes that each kernel of the function stores for want of registers."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")

    def spilled(function, *shapes, warpgroups=3):
        one = jax.sharding.SingleDeviceSharding(device)
        arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=one) for shape, dtype in shapes]
        with made_for(TARGET):
            jax.jit(function).trace(*arguments).lower().compile()
        told = "".join(capfd.readouterr())
        found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", told)
        # What a block is started with is what its warpgroups have between them.
        assert all(int(used) <= registers(warpgroups) for used in re.findall(r"Used (\d+) registers", told))
        if not found:
            pytest.skip("no ptxas: pip install nvidia-cuda-nvcc")
        return [int(stores) for _, stores in found]

    return spilled


# The code of jax 0.11 takes a few registers more.
FEW = 0 if jax.__version_info__ >= (0, 12) else 32
CONFIGURATIONS = [(H, softcap) for H in HEAD_WIDTHS for softcap in (0.0, 20.0)]


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize(("H", "softcap"), CONFIGURATIONS)
def test_forward_keeps_to_its_registers(H, softcap, statistics, spilled):
    options = {"scale": H**-0.5, "softcap": softcap, "tiling": tiling_for(H, jnp.bfloat16, T), "statistics": statistics}
    x, y, i = ((B, T, N, H), jnp.bfloat16), ((B, S, K, H), jnp.bfloat16), ((B, T), jnp.int32)
    assert max(spilled(functools.partial(forward, **options), x, y, y, i, i)) <= FEW


@pytest.mark.parametrize(("H", "softcap"), CONFIGURATIONS)
def test_backward_keeps_to_its_registers(H, softcap, spilled):
    options = {"scale": H**-0.5, "softcap": softcap, "tiling": tiling_for(H, jnp.bfloat16, T)}
    x, y, i, f = ((B, T, N, H), jnp.bfloat16), ((B, S, K, H), jnp.bfloat16), ((B, T), jnp.int32), ((B, T, N), jnp.float32)
    counts = sorted(spilled(functools.partial(backward, **options), x, y, y, i, i, f, f, x))
    assert len(counts) == 2
    assert counts[0] <= FEW
    # At a width of 256 two sums of 64 x 128 leave too little for the addresses of operands, which are made before the loop.
    assert counts[1] <= (256 if H == 256 else FEW)


@pytest.mark.parametrize(("H", "softcap"), CONFIGURATIONS)
def test_decode_keeps_to_its_registers(H, softcap, spilled):
    bf16, i = jnp.bfloat16, ((B,), jnp.int32)
    pages = ((9, 64, K, H), bf16)
    function = functools.partial(decode, scale=H**-0.5, softcap=softcap)
    shapes = ((B, N, H), bf16), pages, pages, ((B, 4), jnp.int32), i, i
    assert max(spilled(function, *shapes, warpgroups=WARPGROUPS[H] + 1)) <= FEW


@pytest.mark.parametrize("softcap", [0.0, 20.0])
def test_logsumexp_keeps_to_its_registers(softcap, spilled):
    function = functools.partial(logsumexp, vocab=50257, softcap=softcap)
    assert max(spilled(function, ((4096, 768), jnp.bfloat16), ((50304, 768), jnp.bfloat16))) <= FEW
