#!/usr/bin/env python3
"""Attention as the models call it against its plain form and jax's own, in one run: a table with ratios, JSON beside it.

    scripts/bench_attention.py [--out docs/bench/attention.json]

The rounds go through all computations in turn, so that a busy machine slows them all; a figure is the least of the rounds. On a
GPU the kernels are measured beside cuDNN and PyTorch instead (`bench_attention_gpu.py`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

import pallas_kernels as kernels

SHAPES = ((16, 256, 4, 64), (8, 256, 4, 32), (8, 256, 16, 32))  # batch, positions, heads, width


def computations(batch: int, length: int) -> dict[str, Callable[..., jax.Array]]:
    """Causal attention three ways; the first is the peer of the ratios."""
    ranges = kernels.causal(batch, length)
    return {
        "plain": lambda q, k, v: kernels.attention_reference(q, k, v, ranges)[0],
        "in use": lambda q, k, v: kernels.attention(q, k, v, ranges)[0],
        "jax.nn.dot_product_attention": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
    }


def measure(shape: tuple[int, int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Least seconds of forward, and of forward and backward, for every computation at one shape, float32."""
    arrays = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
    made = {}
    for name, function in computations(*shape[:2]).items():
        made[name, "forward"] = jax.jit(function)
        made[name, "both"] = jax.jit(jax.grad(lambda q, k, v, f=function: jnp.square(f(q, k, v)).sum(), (0, 1, 2)))
    least = dict.fromkeys(made, float("inf"))
    for compiled in made.values():
        jax.block_until_ready(compiled(*arrays))
    for _ in range(rounds):
        for name, compiled in made.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled(*arrays))
            least[name] = min(least[name], time.perf_counter() - began)
    names = dict.fromkeys(name for name, _ in made)
    return [{"shape": shape, "name": name, "forward": least[name, "forward"], "both": least[name, "both"]} for name in names]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = jax.default_backend() == "gpu"
    default = f"docs/bench/attention{'-gpu' if gpu else ''}.json"
    parser.add_argument("--out", default=default, help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=15, help="rounds through all computations")
    args = parser.parse_args()
    out = Path(args.out)
    if not out.parent.is_dir() or args.rounds < 1:
        parser.error(f"expected --out in a folder that there is, and --rounds of 1 or more, found {out} and {args.rounds}")
    if gpu:
        import bench_attention_gpu

        bench_attention_gpu.measure(out)
        return
    rows = [row for shape in SHAPES for row in measure(shape, args.rounds)]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float32; ms, and times as fast as the plain form\n")
    print(f"{'batch, length, heads, width':<28}{'computation':<30}{'forward':>16}{'and backward':>16}")
    for row in rows:
        peer = next(other for other in rows if other["shape"] == row["shape"])
        figures = [f"{1e3 * row[kind]:.1f} ({peer[kind] / row[kind]:.2f} x)" for kind in ("forward", "both")]
        print(f"{row['shape']!s:<28}{row['name']:<30}{figures[0]:>16}{figures[1]:>16}")
    body = {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "rounds": args.rounds,
        "rows": rows,
    }
    out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
