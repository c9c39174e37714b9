"""`jaxlm VERB ...`: one thin file a verb, imported only when it is called.

Exit status: 0 done, 1 a contract is broken or a check failed, 2 wrong usage, 3 interrupted and resumable.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import jaxlm
from jaxlm.cli.arguments import Parser, UsageError, parse
from jaxlm.cli.output import Output
from jaxlm.contract import ContractError, InputError

VERBS = {
    "quickstart": "from nothing to a trained, evaluated model that writes, in minutes",
    "tokenizer": "train a tokenizer; encode and decode with it",
    "data": "build token shards from text; show them",
    "train": "train a run, or go on with one",
    "eval": "bits per byte of a run on its validation split",
    "generate": "continue a prompt with a run",
    "check": "check every contract along the chain of artifacts",
}
RESUMABLE = ("train", "quickstart")


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
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(as_json="--json" in words)
    verb = words[0] if words else ""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"jaxlm: warning: {message}", file=sys.stderr)
        return _status(words, verb, out)


def _status(words: Sequence[str], verb: str, out: Output) -> int:
    try:
        if not words or verb in ("-h", "--help", "--version"):
            _top().parse_args(words or ["--help"])
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
            hint = f"the nearest is `jaxlm {close[0]}`" if close else f"the verbs are {', '.join(VERBS)}"
            raise UsageError(f"{verb}: expected a verb, found none of that name; {hint}")
        module = import_module(f"jaxlm.cli.{verb}")
        return int(module.run(parse(verb, module, words[1:]), out) or 0)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        again = "; the same command goes on from the last checkpoint" if verb in RESUMABLE else ""
        return _failed(out, "interrupted", f"interrupted{again}", 3)
    except InputError as error:
        return _failed(out, "input", str(error), 2)
    except ContractError as error:
        return _failed(out, "contract", str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        return _failed(out, "input", f"{error.filename}: expected a path that can be used, found: {error.strerror}", 2)
    except RuntimeError as error:
        if not _is_save_error(error):
            raise
        return _failed(out, "save", str(error), 1)


def _is_save_error(error: Exception) -> bool:
    """Whether a checkpoint could not be saved, without importing jax to know."""
    room = sys.modules.get("jaxlm.checkpoint")
    return room is not None and isinstance(error, room.SaveError)


def _failed(out: Output, kind: str, message: str, status: int) -> int:
    print(f"jaxlm: {'' if kind == 'interrupted' else 'error: '}{' '.join(message.split())}", file=sys.stderr)
    out.result({"error": {"kind": kind, "message": message}})
    return status
