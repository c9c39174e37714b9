"""Where the time of a training step goes: seconds by named scope, beside the machine's own rate of matrix products."""

from __future__ import annotations

import collections
import glob
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from bench_train_process import batch_of

from jaxlm.config.schema import RunConfig
from jaxlm.parallel import make_mesh
from jaxlm.scaling.accounting import flops_per_token
from jaxlm.train import train_step
from jaxlm.train.state import initial_state, put_batch

SCOPES = ("attention", "feed_forward", "head", "embedding", "optimizer", "norms")
Row = dict[str, Any]


def least_seconds(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds by the clock of each function, the least of `rounds` through all of them, after one call of each."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def matmul_peak(dtype: str) -> float:
    """The best rate of one matrix product of this machine, FLOP/s, over a few sizes."""
    sizes = ((1024,) * 3, (2048,) * 3, (2048, 512, 1344)) if jax.default_backend() == "cpu" else ((4096,) * 3, (8192,) * 3)
    best = 0.0
    for m, k, n in sizes:
        a, b = (jax.random.normal(jax.random.key(0), shape).astype(dtype) for shape in ((m, k), (k, n)))
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest" if a.dtype == jnp.float32 else None))
        seconds = least_seconds({"": lambda a=a, b=b, product=product: [product(a, b) for _ in range(4)]}, 8)[""] / 4
        best = max(best, 2.0 * m * k * n / seconds)
    return best


def ready(cfg: RunConfig) -> tuple[Any, Any, Any, Any]:
    """Mesh, compiled step, state and batch."""
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        state, batch = initial_state(cfg, mesh), put_batch(batch_of(cfg), cfg, mesh)
        return mesh, train_step.lower(state, batch).compile(), state, batch


def traced(run: Callable[[], Any], steps: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of every call of each operation in a profile of `steps` runs, and the least seconds of a run."""
    found, least = collections.defaultdict(list), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                began = time.perf_counter()
                run()
                least = min(least, time.perf_counter() - began)
        path = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            for line in plane.lines:
                for event in line.events:
                    if operation := dict(event.stats).get("hlo_op"):
                        found[operation].append(event.duration_ns / 1e9)
    return found, least


def profile(name: str, cfg: RunConfig, steps: int = 6) -> Row:
    """Seconds of a step by named scope, matrix products apart; each operation at the mean of its quicker half of calls."""
    _, compiled, state, batch = ready(cfg)
    text, held = compiled.as_text(), [state]

    def run() -> None:
        held[0], _ = compiled(held[0], batch)
        jax.block_until_ready(held[0])

    run()
    found, least = traced(run, steps)
    names = dict(re.findall(r'%(\S+) = [^\n]*?op_name="([^"]*)"', text))
    scopes: collections.Counter[tuple[str, str]] = collections.Counter()
    for operation, seconds in found.items():
        if operation.startswith(("while", "call", "conditional")):  # they hold the others
            continue
        quick = sorted(seconds)[: max(1, len(seconds) // 2)]
        path = names.get(operation, "")
        where = next((scope for scope in SCOPES if scope in path), "other" if path else "fills and copies without a name")
        way = "backward" if "transpose(" in path else "forward"
        kind = "products" if path.endswith("dot_general") or operation.startswith("dot") else "rest"
        scopes[where if where not in SCOPES[:3] else f"{where}, {way}", kind] += sum(quick) / len(quick) * len(seconds) / steps
    dtype = "bfloat16" if cfg.train.precision == "bfloat16" else "float32"
    peak, flops = matmul_peak(dtype), flops_per_token(cfg.model).model * cfg.tokens_per_step
    parts = [{"scope": scope, "kind": kind, "seconds": seconds} for (scope, kind), seconds in scopes.most_common()]
    return {
        "model": name,
        "seconds": least,
        "peak_flops": peak,
        "dtype": dtype,
        "flops": flops,
        "mfu": flops / least / peak,
        "parts": parts,
    }


def profile_table(row: Row) -> Iterable[str]:
    """The step by scope."""
    yield (
        f"step {row['seconds']:.3f} s, {row['flops'] / 1e9:.0f} GFLOP; measured {row['dtype']} peak "
        f"{row['peak_flops'] / 1e9:.0f} GFLOP/s: MFU {row['mfu']:.1%}"
    )
    for part in row["parts"]:
        yield f"  {part['scope']:<36}{part['kind']:<10}{1e3 * part['seconds']:>9.1f} ms{part['seconds'] / row['seconds']:>8.1%}"
    left = row["seconds"] - sum(part["seconds"] for part in row["parts"])
    yield f"  {'between operations (or side by side)':<46}{1e3 * left:>9.1f} ms{left / row['seconds']:>8.1%}"
