#!/usr/bin/env python3
"""Time candidate tiles of the attention kernels on the device at hand, and print the rows for `pallas_kernels/tuning`.

    scripts/tune_attention.py [--widths 64,128] [--lengths 2048,16384] [--seconds 300] [--out rows.json]

Causal attention in bfloat16 of 16k tokens of a model 2048 wide. A candidate that does not compile counts as none; what a table
has by then is among the candidates. Rows go before the general ones of the table by hand, so that somebody has looked at them.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from bench_attention_gpu import median_seconds

import pallas_kernels as kernels
from pallas_kernels import tuning
from pallas_kernels.dispatch import target, unfit

Tiles = dict[str, list[int]]
HOPPER: dict[str, list[list[int]]] = {
    "forward": [[64, 128, 2], [64, 128, 3], [64, 64, 3], [64, 64, 4], [64, 192, 2], [64, 256, 2], [128, 64, 2], [128, 128, 2]],
    "dq": [[64, 128, 2], [64, 128, 3], [64, 64, 2], [64, 64, 3], [128, 64, 2]],
    "dkv": [[128, 64, 2], [64, 64, 2], [64, 64, 3], [64, 128, 2], [128, 128, 2]],
}
TPU: dict[str, list[list[int]]] = {
    way: [[512, 512], [512, 1024], [1024, 512], [1024, 1024], [512, 2048], [256, 512], [256, 1024]]
    for way in ("forward", "backward")
}


def computation(table: str, way: str, tiles: Tiles, operands: tuple) -> Callable[[], Any]:
    """One kernel with such tiles, or for TPUs both of the gradients; called without arguments."""
    q, k, v, ranges, lse, delta, d_out = operands
    options: dict[str, Any] = {"scale": q.shape[-1] ** -0.5, "softcap": 0.0}
    if table == "tpu":
        from pallas_kernels import tpu

        tiled = functools.partial(getattr(tpu, way), tiling=tpu.Tiling(*tiles["forward"], *tiles["backward"]), **options)
        given = (q, k, v, ranges, *(() if way == "forward" else (lse, delta, d_out)))
        return functools.partial(jax.jit(tiled), *given)
    from pallas_kernels.hopper import Blocks, Tiling

    tiling = Tiling(**{name: Blocks(*numbers) for name, numbers in tiles.items()})
    if way == "forward":
        from pallas_kernels.hopper.forward import forward

        return functools.partial(
            jax.jit(functools.partial(forward, tiling=tiling, statistics=False, **options)), q, k, v, *ranges
        )
    from pallas_kernels.hopper import dkv, dq
    from pallas_kernels.hopper.warpgroup import LOG2E

    kernel: Any = dq.gradient_of_queries if way == "dq" else dkv.gradients_of_keys_and_values
    one = functools.partial(kernel, keys=k.shape[1], blocks=getattr(tiling, way), **options)
    return functools.partial(jax.jit(one), q, k, v, ranges, (lse * LOG2E, delta), d_out)


def seconds_of(call: Callable[[], Any]) -> float | None:
    """Median seconds of a call; None where it does not compile or run."""
    try:
        return median_seconds(call, repetitions=5, calls=3)
    except Exception as error:
        print(f"    none: {type(error).__name__}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
        return None


def operands_of(width: int, length: int) -> tuple:
    """q, k, v, ranges, log-sum-exp, the gain of each row and the gradient by the output: 16k tokens, 2048 / width heads."""
    batch, heads = max(1, 16384 // length), 2048 // width
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (jax.random.normal(key, (batch, length, heads, width), jnp.bfloat16) for key in keys)
    ranges = kernels.causal(batch, length)
    out, lse, *_ = jax.jit(functools.partial(kernels.attention, statistics=False))(q, k, v, ranges)
    return q, k, v, ranges, lse, jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1), d_out


def fastest(
    candidates: list[list[int]], time_of: Callable[[list[int]], float | None], deadline: float
) -> tuple[list[int] | None, dict[str, float]]:
    """The candidate with the least seconds, and milliseconds of each that runs; none is begun after the deadline."""
    found: dict[str, float] = {}
    for candidate in candidates:
        seconds = time_of(candidate) if time.monotonic() < deadline else None
        if seconds is not None:
            found[" x ".join(map(str, candidate))] = round(1e3 * seconds, 4)
    if not found:
        return None, found
    best = min(found, key=found.__getitem__)
    return [int(number) for number in best.split(" x ")], found


def row(table: str, width: int, length: int, deadline: float) -> dict[str, Any]:
    """The row for heads of a width and sequences up to a length on this device; kernels that there was no time for stay."""
    on = target()
    tiles: Tiles = dict(tuning.tiles(table, on.kind, "bfloat16", width, length))
    operands, told = operands_of(width, length), {}
    for way, candidates in (HOPPER if table == "hopper" else TPU).items():
        before = tiles[way]

        def time_of(candidate: list[int], way: str = way) -> float | None:
            return seconds_of(computation(table, way, {**tiles, way: candidate}, operands))

        best, told[way] = fastest([before, *(x for x in candidates if x != before)], time_of, deadline)
        tiles[way] = best or before
    source = f"measured {datetime.date.today()}, jax {jax.__version__}, causal, 16k tokens, ms: {json.dumps(told)}"
    return tuning.Row(on.kind, "bfloat16", width, length, tiles, source)._asdict()


def numbers(words: str) -> list[int]:
    """Of a list with commas."""
    return [int(word) for word in words.split(",")]


def main() -> int:
    """Measure, print the rows, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=numbers, default=[128, 64], help="of heads")
    parser.add_argument("--lengths", type=numbers, default=[2048, 16384], help="of sequences")
    parser.add_argument("--seconds", type=float, default=300.0, help="after these no kernel more is begun")
    parser.add_argument("--out", default="", help="where the rows go as JSON")
    args = parser.parse_args()
    on = target()
    if why := unfit(on, "bfloat16", max(args.widths)):
        print(f"tune_attention: expected a device that there are kernels for, but {why}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + args.seconds
    table = "tpu" if on.platform == "tpu" else "hopper"
    print(f"for pallas_kernels/tuning/{table}.json:")
    made = []
    for width, length in itertools.product(args.widths, sorted(args.lengths)):
        made.append("  " + json.dumps(row(table, width, length, deadline)))
        print(made[-1], flush=True)
        if args.out:
            Path(args.out).write_text("[\n" + ",\n".join(made) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
