"""Plant faults in a small real run, and see what notices them, when, and what
each would have cost had nobody looked.

  jaxlm faults                      all of them, and clean runs beside them
  jaxlm faults mask_one_ahead data  one, and all of a layer of the stack
  jaxlm faults --list
  jaxlm faults explain bos_dropped  mechanism, symptom, incident, its curve

The runs lie in --out, apart for each edition of the code; what is there
already is not done again. Exits with 1 where a fault that can be seen is not,
or a clean run alarms.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.output import Output, require_new, write_new
from jaxlm.contract import InputError

if TYPE_CHECKING:
    from jaxlm.faults import Fault, Trial

EXPLAIN = "explain"
NARROW = ("fault", "detected by", "when", "damage", "public")
SHORT = {"six_sigma": "6σ", "nan_loss": "NaN"}  # the public rules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm faults`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a fault or a layer of the stack; or explain, and a fault")
    parser.add_argument("--list", action="store_true", help="names and mechanisms, and nothing else")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds on which each is planted (1)")
    parser.add_argument(
        "--clean", type=int, metavar="N", help="clean runs beside them (4; 0 with names), and five with harmless changes"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (one for each processor, up to 8)")
    parser.add_argument("--out", default="runs/faults", metavar="DIR", help="where runs and results lie (runs/faults)")
    parser.add_argument("--html", metavar="FILE", help="write a page with all of it")


def run(args: argparse.Namespace, out: Output) -> int:
    """List, explain, or plant."""
    from jaxlm.faults import named

    for name, value in (("seeds", args.seeds), ("jobs", args.jobs), ("clean", args.clean)):
        least = 0 if name == "clean" else 1
        if value is not None and value < least:
            raise InputError(f"--{name}: expected a number >= {least}, found {value}")
    explain = args.names[:1] == [EXPLAIN]
    if explain and len(args.names) < 2:
        raise InputError("explain: expected the name of a fault after it, found none; `jaxlm faults --list` shows them")
    if not explain and EXPLAIN in args.names:
        others = " ".join(name for name in args.names if name != EXPLAIN)
        raise InputError(f"explain: expected it before all names, found it after one; `jaxlm faults explain {others}`")
    faults = named(args.names[1:] if explain else args.names)
    if args.list:
        return _listed(faults, out)
    if args.html:
        require_new(args.html, option="--html")
    return _planted(faults, args, out, explain=explain)


def _listed(faults: Sequence[Fault], out: Output) -> int:
    from jaxlm.cli.tokenizer_drawing import Screen, table

    screen = Screen(out)
    lines = [(fault.name, fault.layer, fault.mechanism) for fault in faults]
    screen.show(table(("fault", "of", "mechanism"), lines, width=screen.width, fold=("mechanism",)))
    names = ("name", "layer", "mechanism", "symptom", "incident", "seen_by", "scene", "at", "within", "unseen")
    out.result({"faults": [{name: getattr(fault, name) for name in names} for fault in faults]})
    return 0


def _planted(faults: Sequence[Fault], args: argparse.Namespace, out: Output, *, explain: bool) -> int:
    from jaxlm.cli.tokenizer_drawing import Screen, table
    from jaxlm.faults.campaign import campaign, edition
    from jaxlm.faults.summary import as_json, rows, totals

    clean = args.clean if args.clean is not None else (0 if args.names else 4)
    jobs = args.jobs or min(8, os.cpu_count() or 1)
    folder = Path(args.out) / edition()
    trials, runs = campaign(faults, seeds=args.seeds, clean=clean, folder=folder, jobs=jobs, say=out.warn)
    found, screen = rows(faults, trials), Screen(out)
    if explain:
        for fault in faults:
            _explained(fault, [trial for trial in trials if trial.fault == fault.name], screen)
    else:
        lines = [_narrow(row.cells()) for row in found]
        screen.show(table(NARROW, lines, width=screen.width, right=("fault", "when", "damage"), fold=("detected by", "public")))
        for line in totals(found, runs):
            screen.show(line)
    if args.html:
        from jaxlm.report.faults import faults_page

        write_new(args.html, faults_page(found, runs).encode(), option="--html")
        out.line(f"{args.html}: written")
    bodies: dict[str, Any] = {"faults": as_json(found), "clean": [vars(each) for each in runs]}
    out.result({**bodies, "summary": totals(found, runs)})
    missed = any(row.detected < len(row.trials) for row in found if not row.fault.unseen)
    return 1 if missed or any(each.alarms or each.broken for each in runs) else 0


def _narrow(cells: Sequence[str]) -> tuple[str, ...]:
    """A row of `summary.HEAD` in fewer columns, for 80 letters: the place stands with what saw it."""
    name, _, by, when, where, damage, public = cells
    for rule, short in SHORT.items():
        public = public.replace(rule, short)
    return name, f"{by}, {where}" if where else by, when, damage, public


def _explained(fault: Fault, trials: Sequence[Trial], screen: Any) -> None:
    """A fault as a lesson."""
    width = min(screen.width, 100)
    screen.show(f"{fault.name}  ({fault.layer})")
    seen = next((trial.seen for trial in trials if trial.seen is not None), None)
    parts = {
        "mechanism": fault.mechanism,
        "symptom": fault.symptom,
        "incident": fault.incident,
        "must be seen by": ", ".join(fault.seen_by) or f"nothing: {fault.unseen}",
        "was seen": "by nothing" if seen is None else seen.words,
    }
    for name, text in parts.items():
        screen.show(textwrap.fill(f"{name}: {text}", width, subsequent_indent="  "))
    for trial in trials:
        if trial.losses:
            screen.show()
            for line in drawn(trial.losses, trial.clean, width=min(width, 72)):
                screen.show(line)
        if trial.damage is not None:
            screen.show(f"damage on seed {trial.seed}, had it gone unnoticed: {trial.damage:+.3f} nats per label")
        if trial.refused:
            screen.show(textwrap.fill(f"it cannot go unnoticed: {trial.refused}", width, subsequent_indent="  "))


def drawn(with_fault: Sequence[float | None], clean: Sequence[float | None], *, width: int, height: int = 10) -> list[str]:
    """Two loss curves in letters: `#` with the fault, `.` without, `*` where they meet."""
    known = [value for value in (*with_fault, *clean) if value is not None]
    if not known:
        return []
    low, high, steps = min(known), max(known), max(len(with_fault), len(clean))
    canvas = [[" "] * width for _ in range(height)]
    for values, sign in ((clean, "."), (with_fault, "#")):
        for column in range(width):
            begin, end = (column * steps // width, (column + 1) * steps // width)
            part = [value for value in values[begin : max(end, begin + 1)] if value is not None]
            if part:
                row = round((high - sum(part) / len(part)) / ((high - low) or 1.0) * (height - 1))
                canvas[row][column] = "*" if sign == "#" and canvas[row][column] == "." else sign
    lines = ["".join(row).rstrip() for row in canvas]
    return [f"loss {high:.2f}", *lines, f"{low:.2f}, step 1 to {steps}; # with the fault, . without, * both"]
