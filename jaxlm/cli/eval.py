"""Bits per byte of a run on its validation split, with a bootstrap interval.

jaxlm eval runs/quickstart
jaxlm eval runs/quickstart --step 400 --eval.max-documents 100
"""

from __future__ import annotations

import argparse
import dataclasses

from jaxlm.cli.output import Output
from jaxlm.config.overrides import apply_overrides

SECTIONS, CONFIG = ("eval",), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm eval`."""
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--step", type=int, help="the checkpoint to evaluate; the newest by default")


def run(args: argparse.Namespace, out: Output) -> int:
    """Evaluate."""
    from jaxlm.evaluate import evaluate
    from jaxlm.run import Run

    loaded = Run.load(args.run, step=args.step)
    config = apply_overrides(loaded.config, args.overrides, only=SECTIONS)
    loaded.config = dataclasses.replace(loaded.config, eval=config.eval)
    evaluation = evaluate(loaded, say=out.line)
    found = evaluation.result
    out.line(f"{loaded.path} at step {loaded.step}, {found['documents']} documents, {found['bytes']:,} bytes of text")
    if (interval := found["bits_per_byte_ci"]) is None:
        words = "one document gives no interval"
    else:
        words = f"{100 * found['confidence']:g}% interval over documents: {interval[0]:.4f} to {interval[1]:.4f}"
    out.line(f"bits per byte   {found['bits_per_byte']:.4f}   {words}")
    out.line(f"gzip -9         {found['gzip_bits_per_byte']:.4f}   each document by itself")
    out.line(f"loss            {found['loss']:.4f}   nats per token of text; {found['end_of_document_loss']:.2f} for an end")
    out.line(f"written to      {evaluation.path}")
    out.result({**found, "run": str(loaded.path), "step": loaded.step, "evaluation": str(evaluation.path)})
    return 0
