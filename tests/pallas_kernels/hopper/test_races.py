"""No kernel has a race that the interpreter sees, and it sees what is planted: a missing wait, stores that are not committed.

In a process each: what is patched is the kernel library, and what is found is kept by the interpreter for all that it runs.
"""

import subprocess
import sys

import jax
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

# More tiles than stages, since products themselves are not watched.
SCRIPT = """
import sys
import jax, jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from pallas_kernels.hopper import Blocks, Tiling, decode, dkv, dq, forward, logsumexp, warpgroup

kernel, planted = sys.argv[1:]
own = {"forward": forward, "dq": dq, "dkv": dkv, "decode": decode, "logsumexp": logsumexp}[kernel]

class Deaf(warpgroup.Ring):
    def wait(self, step):
        pass

if planted == "wait":  # of the first ring that a kernel makes
    rings = iter([Deaf] + [warpgroup.Ring] * 9)
    own.Ring = type("Rings", (), {"__new__": lambda cls, *a: next(rings)(*a), "barriers": warpgroup.Ring.barriers})
if planted == "commit":
    class Silent:
        commit_smem = staticmethod(lambda: None)
        def __getattr__(self, name):
            return getattr(plgpu, name)
    own.plgpu = Silent()

params = plgpu.InterpretGPUParams(detect_races=True)
blocks = Blocks(64, 64, 2)
options = {"scale": 1.0, "softcap": 0.0}
x = jnp.ones((1, 256, 1, 64), jnp.bfloat16)
start, end = jnp.zeros((1, 256), jnp.int32), jnp.full((1, 256), 256, jnp.int32)
row = jnp.zeros((1, 256, 1))
ranges = forward.KeyRanges(start, end)
of_rows = {"keys": 256, "blocks": blocks, "interpreted": params, **options}
runs = {
    "forward": lambda: forward.forward(
        x, x, x, start, end, tiling=Tiling(blocks, blocks, blocks), statistics=False, interpret=params, **options
    ),
    "dq": lambda: dq.gradient_of_queries(x, x, x, ranges, (row, row), x, **of_rows),
    "dkv": lambda: dkv.gradients_of_keys_and_values(x, x, x, ranges, (row, row), x, **of_rows),
    "decode": lambda: decode.decode(
        x[:, 0], *[jnp.ones((16, 64, 1, 64), jnp.bfloat16)] * 2, jnp.arange(16)[None], jnp.zeros(1, jnp.int32),
        jnp.full(1, 1000, jnp.int32), splits=2, interpret=params, **options
    ),
    "logsumexp": lambda: logsumexp.logsumexp(
        x[0, :, 0], jnp.ones((4096, 64), jnp.bfloat16), 4000, softcap=0.0, splits=1, interpret=params
    ),
}
jax.block_until_ready(runs[kernel]())
print("raced" if gpu_callbacks.get_races().races_found else "no race")
"""
KERNELS = ("forward", "dq", "dkv", "decode", "logsumexp")


@pytest.mark.parametrize("planted", ["nothing", "wait", "commit"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_races(kernel, planted):
    result = subprocess.run([sys.executable, "-c", SCRIPT, kernel, planted], capture_output=True, text=True, timeout=200)
    told = result.stdout + result.stderr
    if planted == "nothing":
        assert result.returncode == 0, told[-3000:]
        assert "no race" in result.stdout
    else:
        found = ("RACE DETECTED", "raced", "no threads observed phase" if planted == "wait" else "raced")
        assert any(words in told for words in found), told[-3000:]
