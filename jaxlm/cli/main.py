"""`jaxlm VERB ...`: one thin file a verb, imported only when it is called.

Exit status: 0 done; 1 a contract is broken, a check or a save failed, memory ran out, or nobody reads what is printed;
2 wrong usage; 3 interrupted and resumable; 4 another process of the run was lost; 5 this process was stuck.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import NoReturn

import jaxlm
from jaxlm.cli.arguments import Parser, UsageError, parse
from jaxlm.cli.failures import RESUMABLE, failure_of
from jaxlm.cli.output import STDOUT, Closed, Output, printing

VERBS = {
    "quickstart": "from nothing to a trained, evaluated model that writes, in minutes",
    "tokenizer": "train a tokenizer; use, inspect, compare and convert it",
    "data": "build token shards from text; show them",
    "explain": "what a run will need: memory, FLOPs, time; no device is touched",
    "train": "train a run, or go on with one",
    "ablate": "a base and what it is without each of its parts, at equal tokens",
    "eval": "bits per byte of a run on its validation split",
    "generate": "continue a prompt with a run",
    "check": "check every contract along the chain of artifacts",
    "watch": "alarms of a run, and what came before each spike of its loss",
    "replay": "compute a step again; name the first equation not finite",
    "report": "one page of a run, or of several: curves, layers, alarms",
    "faults": "plant faults in a small run, and see what notices them",
}


def _top() -> Parser:
    """The top of the command line."""
    lines = "\n".join(f"  {name:<11} {text}" for name, text in VERBS.items())
    top = Parser(
        prog="jaxlm",
        description="A language-model stack in JAX whose contracts are written down,\nfingerprinted and checked.",
        epilog=f"verbs:\n{lines}\n\n`jaxlm VERB --help` says more. Every verb takes --json.",
        usage="jaxlm VERB ...",
    )
    top.add_argument("--version", action="version", version=f"jaxlm {jaxlm.__version__}")
    top.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. argv: the words after `jaxlm`, those of the process by default."""
    _open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(as_json="--json" in words)
    verb = words[0] if words else ""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"jaxlm: warning: {message}", file=sys.stderr)
        return _status(words, verb, out)


def _open_streams() -> None:
    """Let what cannot be printed be printed as escapes, and streams that are closed say so, or go nowhere."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # no file that is opened later may have the number that others print to
        os.close(number)
    sys.stdout = Closed() if sys.stdout is None else sys.stdout
    sys.stderr = open(os.devnull, "w", encoding="utf-8") if sys.stderr is None else sys.stderr
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _called(words: Sequence[str], verb: str, out: Output, options: list[str]) -> int:
    """Call the verb; or show help or version, after which argparse leaves by SystemExit. options: is filled."""
    if not words or verb in ("-h", "--help", "--version"):
        _top().parse_args(words or ["--help"])
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
        hint = f"the nearest is `jaxlm {close[0]}`" if close else f"the verbs are {', '.join(VERBS)}"
        raise UsageError(f"{verb}: expected a verb, found none of that name; {hint}")
    module = import_module(f"jaxlm.cli.{verb}")
    args = parse(verb, module, words[1:])
    options.extend(vars(args))
    return int(module.run(args, out) or 0)


def _status(words: Sequence[str], verb: str, out: Output) -> int:
    options: list[str] = []
    try:
        try:
            with _terminable(verb, out):
                status = _called(words, verb, out, options)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        with printing():
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # nobody reads any more: what was asked for may not have been done
        if isinstance(sys.stdout, Closed):
            print(f"jaxlm: error: {STDOUT}: expected it open, found it closed; >/dev/null throws it away", file=sys.stderr)
        _read_no_more()
        return 1
    except (KeyboardInterrupt, Exception) as error:
        if (failure := failure_of(error, verb, options)) is None:
            raise
        print(f"jaxlm: {'' if failure.status == 3 else 'error: '}{' '.join(failure.message.split())}", file=sys.stderr)
        try:
            out.result({"error": {"kind": failure.kind, "message": failure.message}})
            sys.stdout.flush()
        except OSError:  # the disk that is full may be that of the output
            _read_no_more()
        return failure.status


@contextmanager
def _terminable(verb: str, out: Output) -> Iterator[None]:
    """SIGTERM outside of the steps, which have their own way to stop: what is being made is removed, and the status is 0."""
    if verb not in RESUMABLE or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        out.warn("jaxlm: stopped by SIGTERM; the same command goes on")
        out.result({"stopped": "SIGTERM"})
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read_no_more() -> None:
    """Let standard output go nowhere, so that the interpreter does not fail once more as it ends."""
    if isinstance(sys.stdout, Closed):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
