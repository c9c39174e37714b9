"""From nothing to a trained, evaluated model that writes, in a few minutes.

Trains a tokenizer and a small model on the documentation and source of the
running Python, evaluates, generates, and checks every contract. Ctrl-C stops
it; the same command goes on.

  jaxlm quickstart
  jaxlm quickstart --out runs/mine --train.steps 2000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.cli import check, eval, generate, train
from jaxlm.cli.output import Output, Part
from jaxlm.config.load import load_config

SECTIONS, CONFIG = (), "quickstart"
PROMPTS = ("def __init__(self, ", "class TestCase(", "The ")
NEXT = (
    "jaxlm generate {run} --prompt 'import '",
    "jaxlm eval {run} --eval.stride 32",
    "jaxlm check {run}",
    "jaxlm train configs/quickstart.py --out runs/deeper --model.n-layers 6",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm quickstart`."""
    parser.add_argument("--out", default="runs/quickstart", help="the run directory (default runs/quickstart)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Every stage, one after the other."""
    from jaxlm.watch import duration

    where, stages = Path(args.out), _Stages(out)
    results: dict[str, Any] = {}

    def part(verb: Any, words: list[str]) -> Part:
        made, inner = argparse.ArgumentParser(), Part(out)
        verb.add_arguments(made)
        args = made.parse_args(words)
        args.overrides = []
        status = verb.run(args, inner)
        results["status"] = max(results.get("status", 0), status)
        return inner

    config = load_config(CONFIG, args.overrides)
    half = config.model.context_length // 2
    with stages("train"):
        inner = Part(out)
        train.train(config, where, None, inner)
    if inner.kept["step"] < inner.kept["steps"]:
        out.result({"run": str(where), "step": inner.kept["step"], "steps": inner.kept["steps"]})
        return 0
    with stages("evaluate"):
        results["evaluation"] = part(eval, [str(where)]).kept
    with stages("generate"):
        results["samples"] = []
        for seed, prompt in enumerate(PROMPTS):
            prompt = prompt[: half - 1]  # a letter is one token at most, and one more begins the document
            out.line(f"-- {prompt!r}")
            words = ["--max-new-tokens", str(min(60, half)), "--seed", str(seed), "--top-p", "0.95"]
            words += ["--no-probes"] if seed else []
            results["samples"].append(part(generate, [str(where), f"--prompt={prompt}", *words]).kept)
    with stages("check"):
        checked = part(check, [str(where), "--quiet"]).kept
        results |= {"kept": len(checked["kept"]), "broken": checked["broken"]}

    found = results["evaluation"]
    out.line()
    out.line(
        f"bits per byte  {found['bits_per_byte']:.3f}, where gzip -9 of each document needs {found['gzip_bits_per_byte']:.3f}"
    )
    out.line(f"stages         {', '.join(f'{name} {duration(seconds)}' for name, seconds in stages.seconds.items())}")
    out.line(f"the run        {where}: tokenizer/ data/ checkpoints/ evaluations/ telemetry.jsonl events.jsonl")
    out.line("next           " + f"\n{' ' * 15}".join(line.format(run=where) for line in NEXT))
    status = results.pop("status")
    out.result({"run": str(where), "stages": stages.seconds, **results})
    return status


class _Stages:
    """Headings and times of the stages."""

    def __init__(self, out: Output):
        self.out, self.seconds = out, dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.out.line(f"\n== {name}")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
