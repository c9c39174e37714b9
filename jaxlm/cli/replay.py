"""Compute a recorded step again: whether its figures come out as recorded; and,
equation by equation, which one made the first value that is not finite:
primitive, source line, layer, ranges.

  jaxlm replay runs/quickstart
  jaxlm replay runs/quickstart --step 605

Without --step it is the step of the first alarm, or the first that was skipped.
The steps since the checkpoint before it are computed again; since the initial
state, where there is none. Exits with 1 where the step is not as recorded: the
run had another state or batch than its checkpoints and seeds give.
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
    from jaxlm.contract import InputError
    from jaxlm.run import Run
    from jaxlm.run.logs import damaged_logs, words_of
    from jaxlm.train.replaying import compare_step, recorded, replay_step, step_to_replay
    from jaxlm.watch.compilation_cache import keep_programs

    opened = Run.load(args.run)
    keep_programs()
    damaged = damaged_logs(opened.layout)
    try:
        step = step_to_replay(opened) if args.step is None else args.step
        found = recorded(opened, step, say=out.line)
    except InputError:
        if damaged:  # it may be there that the step is told
            raise damaged[0].error() from None
        raise
    out.line(f"step {step}, from {found.origin}")
    if found.differing is not None:
        out.line(f"  step {found.differing} gave other figures than the telemetry holds: this is not quite the state it was")
    result, compared = replay_step(found), compare_step(found)
    for line in [*compared.words(found.origin).splitlines(), *result.words(sought=found.nonfinite).splitlines()]:
        out.line(line)
    for finding in damaged:
        out.warn(f"jaxlm: error: {words_of(finding)}")
    body = {"step": step, "origin_of_state": found.origin, "differing": found.differing, "as_recorded": compared.as_json()}
    out.result({**body, "broken": [finding.artifact for finding in damaged], **result.as_json()})
    return 0 if compared.kept and not damaged else 1
