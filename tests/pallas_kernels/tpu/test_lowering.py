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
from pallas_kernels.tpu.linear_cross_entropy import gradients as head_gradients
from pallas_kernels.tpu.linear_cross_entropy import logsumexp as head_logsumexp
from tests.pallas_kernels.operands import TPUS, made_for

TOPOLOGIES = dict(zip(("v5e:2x2", "v5p:2x2x1", "v6e:2x2"), TPUS, strict=True))


def cases():
    """Width, length, dtype and cap: every row of the table at the widest heads and the longest sequences that it is for."""
    for row in tuning.rows("tpu"):
        for dtype, softcap in (("bfloat16", 0.0), ("float32", 30.0)):
            width, length = row.width or 512, row.length or 16384
            if tuning.tiles("tpu", "TPU v5e", dtype, width, length) == row.tiles:
                yield width, length - 37, dtype, softcap


HEADS = [(768, 50257, "bfloat16"), (2048, 128256, "bfloat16"), (8192, 32000, "bfloat16"), (4096, 50304, "float32")]
CASES = [*cases(), (64, 1100, "bfloat16", 30.0), (96, 9000, "float32", 0.0)]


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


@pytest.mark.parametrize("on", TPUS, ids=lambda on: on.kind)
@pytest.mark.parametrize(("width", "length", "dtype", "softcap"), CASES)
def test_it_lowers(on, width, length, dtype, softcap):
    with made_for(on):
        for name, function, operands in programs(width, length, dtype, softcap):
            text = jax.jit(function).trace(*operands).lower(lowering_platforms=("tpu",)).as_text()
            assert "tpu_custom_call" in text
            assert name in text


@pytest.mark.aot
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install libtpu")
def test_it_compiles_to_machine_code(topology):
    """In a process of its own: libtpu stays in the one that has started it."""
    variables = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", f"from tests.pallas_kernels.tpu.test_lowering import compiled; compiled({topology!r})"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 3 * len(CASES) + 2 * len(HEADS)


def compiled(topology):
    """Compile all for the first device of a topology: what fits a core's memory is known only then."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    described = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    assert described.device_kind == TOPOLOGIES[topology].kind, described.device_kind
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(described))
    with made_for(TOPOLOGIES[topology]):
        for case in CASES:
            for name, function, operands in programs(*case, struct=struct):
                jax.jit(function).trace(*operands).lower().compile()
                print("compiled", name, *case)
        for d_model, vocab, dtype in HEADS:
            x, head = struct((4000, d_model), dtype), struct((vocab, d_model), dtype)
            labels, row = struct((4000,), jnp.int32), struct((4000,), jnp.float32)
            jax.jit(functools.partial(head_logsumexp, vocab=vocab, softcap=30.0)).trace(x, head).lower().compile()
            print("compiled logsumexp", d_model, vocab, dtype)
            gradients = functools.partial(head_gradients, softcap=30.0)
            jax.jit(gradients, static_argnums=3).trace(x, head, labels, vocab, row, row, row).lower().compile()
            print("compiled gradients", d_model, vocab, dtype)
