"""Compute a recorded step again, equation by equation, and name the first one
that made a value which is not finite: primitive, source line, layer, ranges.

  jaxlm replay runs/quickstart
  jaxlm replay runs/quickstart --step 1234

Without --step it is the step of the first alarm, or the first that was skipped.
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm replay`."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, metavar="N", help="the step, from 1")


def run(args: argparse.Namespace, out: Output) -> int:
    """Replay."""
    from jaxlm.run import Run
    from jaxlm.train.replaying import recorded, replay_step, step_to_replay
    from jaxlm.watch.compilation_cache import keep_programs

    opened = Run.load(args.run)
    keep_programs()
    step = step_to_replay(opened) if args.step is None else args.step
    found = recorded(opened, step, say=out.line)
    out.line(f"step {step}, from {found.origin}")
    if found.differing is not None:
        out.line(f"  step {found.differing} gave other figures than the telemetry holds: this is not quite the state it was")
    result = replay_step(found)
    for line in result.words().splitlines():
        out.line(line)
    out.result({"step": step, "origin_of_state": found.origin, "differing": found.differing, **result.as_json()})
    return 0
