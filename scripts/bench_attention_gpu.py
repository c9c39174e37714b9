"""Attention kernels on a GPU: TFLOP/s against cuDNN and PyTorch in the same run, and decoding's share of the copy rate.

FLOPs are those of the products that a mask leaves: 4 * B * N * T * S * H forward, half of it where causal, 2.5 times as many
backward. A figure is the median of the repetitions; each repetition is a few calls in a row, so that starting them is hidden.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels as kernels

# Name, batch, length, query heads, key/value heads, width: 16k tokens, 2048 wide, as papers have it; first those with goals.
SHAPES = (
    ("D128 16k", 1, 16384, 16, 16, 128),
    ("D64 16k, 16 heads", 1, 16384, 16, 16, 64),
    ("D128 8k", 2, 8192, 16, 16, 128),
    ("D128 4k, 32 heads of 8", 4, 4096, 32, 8, 128),
    ("D64 8k", 2, 8192, 32, 32, 64),
)
PEERS = ("jaxlm", "jaxlm, statistics", "cudnn")  # and torch, in a process of its own, and xla at the last shape
WAYS = ("forward", "backward", "both")
Row = dict[str, Any]


def median_seconds(call: Callable[[], Any], *, repetitions: int = 9, calls: int = 5) -> float:
    """Seconds of one call."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)


def computation(peer: str, batch: int, length: int) -> Callable[..., jax.Array]:
    """Causal attention of q, k and v, [B, T, N, H]."""
    if peer == "cudnn":
        return functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    ranges = kernels.causal(batch, length)
    kernel: kernels.Kernel = "reference" if peer == "xla" else "pallas"
    statistics = peer == "jaxlm, statistics"
    return lambda q, k, v: kernels.attention(q, k, v, ranges, kernel=kernel, statistics=statistics).out_BTNH


def of_jax(peer: str, shape: tuple, dtype: str) -> Row:
    """Seconds forward, backward from what is kept, and of both; an error is a result."""
    _, B, T, N, K, H = shape
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (jax.random.normal(key, (B, T, n, H), dtype) for key, n in zip(keys, (N, K, K, N), strict=True))
    function = computation(peer, B, T)
    try:
        forward = jax.jit(function)
        kept = jax.jit(lambda q, k, v: jax.vjp(function, q, k, v)[1])(q, k, v)
        backward = jax.jit(lambda pull, d_out: pull(d_out))
        both = jax.jit(lambda q, k, v, d_out: jax.vjp(function, q, k, v)[1](d_out))
        return {
            "forward": median_seconds(lambda: forward(q, k, v)),
            "backward": median_seconds(lambda: backward(kept, d_out)),
            "both": median_seconds(lambda: both(q, k, v, d_out)),
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


TORCH = """
import json, statistics, sys, time
import torch
import torch.nn.functional as F
rows = []
for name, B, T, N, K, H in json.loads(sys.argv[1]):
    q, k, v = (torch.randn(B, n, T, H, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (N, K, K))
    d = torch.randn_like(q)
    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=N != K)
    def both():
        q.grad = k.grad = v.grad = None
        forward().backward(d)
    row = {}
    for way, call in (("forward", forward), ("both", both)):
        call(); found = []
        for _ in range(9):
            torch.cuda.synchronize(); began = time.perf_counter()
            for _ in range(5):
                call()
            torch.cuda.synchronize(); found.append((time.perf_counter() - began) / 5)
        row[way] = statistics.median(found)
    rows.append(row)
print(json.dumps(rows))
"""


def of_torch(shapes: tuple) -> list[Row]:
    """PyTorch's scaled_dot_product_attention in a process of its own; JAXLM_TORCH_PYTHON names its interpreter."""
    command = [os.environ.get("JAXLM_TORCH_PYTHON", sys.executable), "-c", TORCH, json.dumps(shapes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        return [{"error": "no result within 100 s"}] * len(shapes)
    if done.returncode:
        return [{"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}] * len(shapes)
    return json.loads(done.stdout.splitlines()[-1])


def rates() -> dict[str, float]:
    """What this device does: FLOP/s of a product of bfloat16 matrices of 8192, bytes/s of a copy of 4 GB (read and written)."""
    a, b = (jax.random.normal(key, (8192, 8192), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)
    large = jnp.zeros((1 << 30,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return {
        "matmul_flops": 2.0 * 8192**3 / median_seconds(lambda: product(a, b)),
        "copy_bytes": 2.0 * large.nbytes / median_seconds(lambda: copy(large), calls=2),
    }


def decoding(copy_bytes: float) -> Row:
    """One query of 8 sequences of 32k keys, 8 query heads on each of 8 key/value heads: the share of the copy rate."""
    B, S, K, G, H, page = 8, 32768, 8, 8, 128, 128
    pages = B * S // page
    k, v = (jax.random.normal(key, (pages, page, K, H), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    q = jax.random.normal(jax.random.key(1), (B, K * G, H), jnp.bfloat16)
    blocks = jax.random.permutation(jax.random.key(2), pages).reshape(B, -1).astype(jnp.int32)
    bounds = jnp.zeros((B,), jnp.int32), jnp.full((B,), S, jnp.int32)
    from pallas_kernels.hopper.decode import decode

    call = jax.jit(functools.partial(decode, scale=H**-0.5, softcap=0.0))
    try:
        seconds = median_seconds(lambda: call(q, k, v, blocks, *bounds), calls=20)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    read = k.nbytes + v.nbytes
    return {"seconds": seconds, "bytes": read, "share_of_copy": read / seconds / copy_bytes}


def versions() -> dict[str, str]:
    """Of what is compared, as far as this interpreter has it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "date": datetime.date.today().isoformat()}
    for name in ("jax-cuda13-plugin", "nvidia-cudnn-cu13", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def measure(out: Path) -> None:
    """All of it, in bfloat16: a line is printed and the JSON is written after every figure, so that none is lost."""
    result: Row = {**versions(), "rows": []}

    def keep(*lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        out.write_text(json.dumps(result, indent=1) + "\n")

    try:
        result |= rates()
    except Exception as error:
        result |= {"matmul_flops": float("nan"), "copy_bytes": float("nan"), "error": f"{type(error).__name__}: {error}"[:300]}
    keep(
        f"jax {jax.__version__}, {result['device']}, bfloat16, causal",
        f"product of 8192: {result['matmul_flops'] / 1e12:.0f} TFLOP/s, copy: {result['copy_bytes'] / 1e12:.2f} TB/s",
        "ms, TFLOP/s, share of the product's, times as fast as cuDNN",
    )
    result["decode"] = decode = decoding(result["copy_bytes"])
    said = decode.get("error") or f"{1e6 * decode['seconds']:.0f} us, {decode['share_of_copy']:.0%} of the copy rate"
    keep(f"decode, 8 sequences of 32k, 64 heads on 8: {said}", "")
    for index, shape in enumerate(SHAPES):
        name, B, T, N, K, H = shape
        forward = 2.0 * B * N * T * T * H
        peers: Row = {}
        flops = {"forward": forward, "backward": 2.5 * forward, "both": 3.5 * forward}
        result["rows"].append({"shape": name, "sizes": [B, T, N, K, H], "flops": flops, "peers": peers})
        print(f"{name:<19}" + "".join(f"{way:>20}" for way in WAYS), flush=True)
        for peer in ("cudnn", *(peer for peer in PEERS if peer != "cudnn"), *(("xla",) if index == len(SHAPES) - 1 else ())):
            peers[peer] = of_jax(peer, shape, "bfloat16")
            keep(line(result, peers, peer, flops))
    of_shapes = of_torch(SHAPES)
    for row, found in zip(result["rows"], of_shapes, strict=True):
        row["peers"]["torch"] = found
        keep(f"{row['shape']:<19}", line(result, row["peers"], "torch", row["flops"]))


def line(result: Row, peers: Row, peer: str, flops: dict[str, float]) -> str:
    """A line of the table."""
    if "error" in peers[peer]:
        return f"  {peer:<17}{peers[peer]['error'][:60]}"
    cells = []
    for way in WAYS:
        seconds, other = peers[peer].get(way), peers.get("cudnn", {}).get(way)
        if seconds is None:
            cells.append("")
            continue
        rate = flops[way] / seconds
        cells.append(
            f"{1e3 * seconds:.2f} {rate / 1e12:.0f} {rate / result['matmul_flops']:.0%}"
            + (f" {other / seconds:.2f}x" if other else "")
        )
    return f"  {peer:<17}" + "".join(f"{cell:>20}" for cell in cells)
