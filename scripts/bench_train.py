#!/usr/bin/env python3
"""The training step against an equivalent PyTorch model, and where its time and its memory go: tables, JSON beside them.

    scripts/bench_train.py [--torch PYTHON] [--models cpu,...] [--only peers,profile,input,compile,memory] [--out FILE.json]

PYTHON is an interpreter with torch and this project (this one by default); where torch is absent, the tables say so. On a CPU
the model is `cpu`, in float32; on a GPU `124M` and `1B`, in bfloat16. Every party has a process of its own; the rounds go
through all of them in turn, and a figure is the least of the rounds. Processes of the same program differ by a tenth and more
on a CPU: there are several sittings, each with new processes, and a figure is the median of the sittings, a ratio the median of
their ratios. Two figures are given on a CPU: seconds by the clock, and seconds of the processors, which other work on the
machine disturbs less.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from bench_train_process import batch_of, config  # noqa: E402
from bench_train_profile import Row, least_seconds, profile, profile_table  # noqa: E402

from jaxlm.config.schema import RunConfig  # noqa: E402
from jaxlm.parallel import make_mesh  # noqa: E402
from jaxlm.scaling.accounting import flops_per_token  # noqa: E402
from jaxlm.train import train_step  # noqa: E402
from jaxlm.train.state import abstract_state, put_batch  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "cpu": dict(vocab_size=10_000, d_model=512, n_layers=4, n_heads=16, d_ff=1344, context_length=256, batch_size=8),
    "124M": dict(vocab_size=50_257, d_model=768, n_layers=12, n_heads=12, context_length=1024, batch_size=32),
    "1B": dict(vocab_size=50_257, d_model=2048, n_layers=18, n_heads=16, context_length=2048, batch_size=8),
}
PARTIES = ("jaxlm", "jaxlm bare", "torch eager", "torch compile")  # the first two are one process


# ---- against PyTorch -------------------------------------------------------------------------------------------------


class Party:
    """A process of bench_train_process.py."""

    def __init__(self, name: str, model: Row, torch_python: str):
        python = torch_python if name.startswith("torch") else sys.executable
        command = [python, str(ROOT / "scripts" / "bench_train_process.py"), name, json.dumps(model)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self.first = self._answer()

    def _answer(self) -> Row:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        return {"error": (self._errors.read().strip().splitlines() or ["no word"])[-1][:300]}

    def steps(self, count: int, *, bare: bool = False) -> Row:
        """Seconds for so many steps."""
        self._process.stdin.write(f"{count}{' bare' if bare else ''}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def sitting(model: Row, torch_python: str, rounds: int) -> dict[str, Row]:
    """What every party needs for a step, in new processes: the least of the rounds through all of them in turn, and each.

    A GPU holds one party's model at a time, so there the parties follow one another.
    """
    cpu = jax.default_backend() == "cpu"
    count = 1 if cpu else 10
    found: dict[str, Row] = {}
    living: dict[str, Party] = {}
    for name in PARTIES:
        if name == "jaxlm bare":
            continue
        party = Party(name, model, torch_python)
        if "error" in party.first:
            found |= {each: party.first for each in ((name, "jaxlm bare") if name == "jaxlm" else (name,))}
            party.close()
        else:
            found[name] = {"first_seconds": party.first["seconds"]}
            living[name] = party
        if cpu and name != PARTIES[-1]:
            continue
        for _ in range(rounds):
            for other, opened in living.items():
                for bare in (False, True) if other == "jaxlm" else (False,):
                    answer, row = opened.steps(count, bare=bare), found.setdefault("jaxlm bare" if bare else other, {})
                    for key in ("seconds", "cpu_seconds"):
                        row[key] = min(row.get(key, float("inf")), answer[key] / count)
                        row.setdefault(f"each_{key}", []).append(round(answer[key] / count, 4))
        for opened in living.values():
            opened.close()
        living.clear()
    return found


def peers(name: str, model: Row, torch_python: str, sittings: int, rounds: int) -> list[Row]:
    """Every party with its sittings and their median."""
    taken = [sitting(model, torch_python, rounds) for _ in range(sittings)]
    tokens = config(model).tokens_per_step
    rows = []
    for party in PARTIES:
        parts = [found[party] for found in taken]
        row: Row = {"model": name, "name": party, "tokens": tokens, "sittings": parts}
        if error := next((part["error"] for part in parts if "error" in part), None):
            rows.append({**row, "error": error})
        else:
            rows.append({**row, **{k: statistics.median(part[k] for part in parts) for k in ("seconds", "cpu_seconds")}})
    return rows


def times_as_fast(row: Row, other: Row, key: str) -> float:
    """How many times the time of `row` the other needs: the median over the sittings of their ratios."""
    pairs = zip(row["sittings"], other["sittings"], strict=True)
    return statistics.median(there[key] / here[key] for here, there in pairs)


def telemetry_cost(full: Row, bare: Row, key: str) -> float:
    """The time of a step with telemetry, over that of the step without right after it: the median over all rounds."""
    pairs = ((a, b) for here, there in zip(full["sittings"], bare["sittings"], strict=True)
             for a, b in zip(here[f"each_{key}"], there[f"each_{key}"], strict=True))  # fmt: skip
    return statistics.median(a / b for a, b in pairs)


# ---- the host's pipeline, compilation, memory --------------------------------------------------------------------------


def pipeline(name: str, cfg: RunConfig, rounds: int) -> Row:
    """Tokens/s of all that the host does for a step: the batch, its contract, its CRC, its bytes, the copy to the device."""
    from jaxlm.data import batch, batch_crc, check_batch
    from jaxlm.data.shards import TokenStream
    from jaxlm.train.validate import label_bytes

    rng, size = np.random.default_rng(0), 8_000_000
    ids = rng.integers(0, cfg.model.vocab_size, size).astype(np.uint16)
    starts = np.unique(np.concatenate([[0, size], rng.integers(1, size, size // 600)]))
    stream = TokenStream((ids,), np.array([0]), starts)
    lengths, mesh = rng.integers(1, 10, cfg.model.padded_vocab), make_mesh(cfg.mesh)
    T = cfg.model.context_length

    def one(step: int) -> Any:
        made = batch(stream, step=step, seed=0, batch_size=cfg.train.batch_size, context_length=T)
        check_batch(made, vocab_size=cfg.model.vocab_size, context_length=T, min_supervised=0.05, label="batch")
        batch_crc(made)
        label_bytes(made.labels, made.loss_mask, lengths)
        return put_batch(made, cfg, mesh)

    seconds = least_seconds({"host": lambda: [one(step) for step in range(20)]}, rounds)["host"] / 20
    return {"model": name, "seconds": seconds, "tokens_per_second": cfg.tokens_per_step / seconds}


def compiled_for(model: Row) -> tuple[float, Any]:
    """Seconds to trace and compile a step, and the program; no array is made, no cache is read."""
    cfg = config(model)
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        state = abstract_state(cfg, mesh)
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), put_batch(batch_of(cfg), cfg, mesh)
        )
        began = time.process_time()
        program = train_step.lower(state, batch).compile()
        return time.process_time() - began, program


def compilation(name: str, model: Row, rounds: int) -> list[Row]:
    """Processor seconds to compile 4 and 16 layers, the layers scanned, the least of the rounds."""
    rows = [{"model": name, "layers": layers, "seconds": float("inf")} for layers in (4, 16)]
    for _ in range(rounds):
        for row in rows:
            jax.clear_caches()
            row["seconds"] = min(row["seconds"], compiled_for({**model, "n_layers": row["layers"]})[0])
    return rows


def memory(name: str, model: Row) -> list[Row]:
    """Bytes of a step beside its arguments, by XLA's own account; the logits of the batch, float32, for comparison."""
    cfg = config(model)
    whole = cfg.tokens_per_step
    forms = {
        "all logits at once, no remat": {"loss_chunk": whole},
        "all logits at once, remat of blocks": {"loss_chunk": whole, "remat": "block"},
        "logits in blocks, no remat": {},
        "logits in blocks, remat of blocks": {"remat": "block"},
    }
    rows = []
    for form, fields in forms.items():
        analysis = compiled_for({**model, **fields})[1].memory_analysis()
        row = {"model": name, "name": form, "temporary_bytes": analysis.temp_size_in_bytes}
        rows.append(
            {**row, "argument_bytes": analysis.argument_size_in_bytes, "logits_bytes": 4 * whole * cfg.model.padded_vocab}
        )
    return rows


# ---- tables --------------------------------------------------------------------------------------------------------------


def peers_table(rows: list[Row], flops: float) -> Iterable[str]:
    """Tokens/s, and times as fast as each form of torch, by the clock and by the processors."""
    others = [row for row in rows if row["name"].startswith("torch") and "seconds" in row]
    yield f"{'':<16}{'tokens/s':>10}{'TFLOP/s':>9}{'clock s':>9}{'CPU s':>9}" + "".join(f"{row['name']:>26}" for row in others)
    for row in rows:
        if "error" in row:
            yield f"{row['name']:<16}absent: {row['error']}"
            continue
        rate = row["tokens"] / row["seconds"]
        times = (f"{times_as_fast(row, o, 'seconds'):.2f} x, CPU {times_as_fast(row, o, 'cpu_seconds'):.2f} x" for o in others)
        figures = f"{rate:>10.0f}{rate * flops / 1e12:>9.3f}{row['seconds']:>9.3f}{row['cpu_seconds']:>9.3f}"
        yield f"{row['name']:<16}{figures}" + "".join(f"{t:>26}" for t in times)
    told = {row["name"]: row for row in rows if "seconds" in row}
    if "jaxlm" in told and "jaxlm bare" in told:
        clock, busy = (telemetry_cost(told["jaxlm"], told["jaxlm bare"], key) for key in ("seconds", "cpu_seconds"))
        yield f"telemetry of every step against none: {clock:.3f} x by the clock, {busy:.3f} x of the processors"


def main() -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="an interpreter with torch and this project")
    parser.add_argument("--models", default="cpu" if jax.default_backend() == "cpu" else "124M,1B", help=", ".join(MODELS))
    parser.add_argument("--only", default="peers,profile,input,compile,memory", help="what to measure")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sittings", type=int, default=5 if jax.default_backend() == "cpu" else 1)
    parser.add_argument("--out", default=str(ROOT / "docs" / "bench" / "train.json"), help="where the JSON goes")
    args = parser.parse_args()
    only, device = args.only.split(","), jax.devices()[0]
    jax.config.update("jax_enable_compilation_cache", False)
    finding = "import importlib.metadata as m; print(m.version('torch'))"
    torch = subprocess.run([args.torch, "-c", finding], capture_output=True, text=True, check=False).stdout.strip()
    body: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{device.device_kind}, {platform.machine()}, {os.cpu_count()} processors",
        "versions": {"jax": jax.__version__, "numpy": importlib.metadata.version("numpy"), "torch": torch or "absent"},
        "rounds": args.rounds,
        "sittings": args.sittings,
        "models": {name: MODELS[name] for name in args.models.split(",")},
    }
    print(f"{body['date']}  Python {body['python']}  {body['machine']}  {body['versions']}\n")
    for name, fields in body["models"].items():
        if jax.default_backend() != "cpu":
            fields["precision"] = "bfloat16"
        cfg = config(fields)
        if "peers" in only:
            rows = peers(name, fields, args.torch, args.sittings, args.rounds)
            body.setdefault("peers", []).extend(rows)
            print(f"{name}: {fields}\n" + "\n".join(peers_table(rows, flops_per_token(cfg.model).model)), "\n", flush=True)
        if "input" in only:
            row = pipeline(name, cfg, args.rounds)
            step = next((r for r in body.get("peers", []) if r["model"] == name and r["name"] == "jaxlm"), None)
            beside = f", {row['tokens_per_second'] * step['seconds'] / step['tokens']:.0f} x the model's" if step else ""
            body.setdefault("input", []).append(row)
            print(f"{name}: the host's pipeline makes {row['tokens_per_second']:.0f} tokens/s{beside}\n", flush=True)
        if "profile" in only:
            row = profile(name, cfg)
            body.setdefault("profile", []).append(row)
            print(f"{name}: " + "\n".join(profile_table(row)), "\n", flush=True)
        if "compile" in only:
            rows = compilation(name, fields, 2)
            body.setdefault("compile", []).extend(rows)
            shown = ", ".join(f"{row['layers']} layers {row['seconds']:.1f} s" for row in rows)
            print(
                f"{name}: to compile, of the processors: {shown}: {rows[1]['seconds'] / rows[0]['seconds']:.2f} x\n", flush=True
            )
        if "memory" in only:
            rows = memory(name, fields)
            body.setdefault("memory", []).extend(rows)
            print(f"{name}: MB beside the arguments; the logits of the batch are {rows[0]['logits_bytes'] / 1e6:.0f} MB")
            print("\n".join(f"  {row['name']:<40}{row['temporary_bytes'] / 1e6:>9.0f}" for row in rows), "\n", flush=True)
        Path(args.out).write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
