"""Train a small base and its ablations, one change each, with the same number
of tokens, and set their losses side by side.

  jaxlm ablate                      all of them
  jaxlm ablate no-norm lr-x64       the base and these
  jaxlm ablate --list
  jaxlm ablate --minutes 5 --html ablations.html
  jaxlm ablate --config configs/tiny.py --tokens 100000

Each is an ordinary run in --out, and is not done again; Ctrl-C stops it, and
the same command goes on. A run that diverges, that a probe refuses or a
detector ends is a result. A config file may bring ablations of its own, as
configs/ablations.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from jaxlm.cli.output import Output, require_new, write_new
from jaxlm.config.ablations import INSTALLED, at_tokens, chosen, load_ablations, words
from jaxlm.contract import InputError

SECTIONS, CONFIG = (), INSTALLED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm ablate`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="ablations; all of them by default")
    parser.add_argument("--list", action="store_true", help="names and what they change, and nothing else")
    parser.add_argument("--config", default=INSTALLED, metavar="FILE", help=f"the base (configs/{INSTALLED}.py)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of every run (those of the base's config)")
    parser.add_argument("--minutes", type=float, metavar="M", help="instead: as many as let all runs take about M minutes here")
    parser.add_argument("--out", default="runs/ablations", metavar="DIR", help="where the runs lie (runs/ablations)")
    parser.add_argument("--html", metavar="FILE", help="write a page with all of it")


def run(args: argparse.Namespace, out: Output) -> int:
    """List, or train and compare."""
    for name in ("tokens", "minutes"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name}: expected a number above 0, found {value}")
    if args.tokens and args.minutes:
        raise InputError("--minutes: expected no --tokens beside it, found both; each sets the tokens of a run")
    base, made = load_ablations(args.config, args.overrides)
    made = chosen(made, args.names)
    from jaxlm.cli.tokenizer_drawing import Screen, table

    screen, tokens = Screen(out), args.tokens or base.train.steps * base.tokens_per_step
    for changes in made.values():
        at_tokens(base, changes, tokens)  # what cannot be is said before anything is trained
    if args.list:
        rows = [(name, words(changes)) for name, changes in made.items()]
        screen.show(table(("run", "changed"), rows, width=screen.width, fold=("changed",)))
        out.result({"ablations": {name: dict(changes) for name, changes in made.items()}})
        return 0
    if args.html:
        require_new(args.html, option="--html")

    from jaxlm.report.ablations import HEAD, NUMBERS, ablations_page, drawn, fate, row
    from jaxlm.report.charts import rounded
    from jaxlm.train.ablate import Outcome, ablate, tokens_in
    from jaxlm.train.host_memory import keep_memory

    keep_memory()
    folder = Path(args.out)
    if args.minutes:
        tokens = tokens_in(base, args.minutes, runs=len(made), folder=folder)
    watch = dataclasses.replace(base.watch, live=base.watch.live and not out.as_json)
    base = dataclasses.replace(base, watch=watch)
    out.line(f"{len(made)} runs of about {tokens:,} tokens in {folder}")

    def each(outcome: Outcome) -> None:
        end = fate(outcome)
        told = f"validation loss {rounded(outcome.validation)}" + (f", {end}" if end != "–" else "")
        out.line(f"{outcome.name}: {told}")

    found = ablate(base, made, folder, tokens=tokens, say=lambda line: None, each=each)
    screen.show()
    for line in drawn(found, width=screen.width):
        screen.show(line)
    screen.show()
    screen.show(table(HEAD, map(row, found), width=screen.width, right=NUMBERS, fold=("changed", "diverged")))
    if args.html:
        write_new(args.html, ablations_page(found).encode(), option="--html")
        out.line(f"{args.html}: written")
    ended = len(found) == len(made) and found[-1].ended
    if not ended:
        out.line("stopped; the same command goes on")
    out.result({"out": str(folder), "tokens": tokens, "complete": ended, "runs": [outcome.as_json() for outcome in found]})
    return 0
