"""What an exception means to the person at the command line: its kind, one message, and the exit status.

jax is not imported to know its errors: they are told by their words and by where they come from.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Collection
from typing import NamedTuple

from jaxlm.cli.output import STDOUT
from jaxlm.contract import ContractError, InputError

RESUMABLE = ("train", "quickstart", "ablate")
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = {
    "eval": "lower --eval.batch-size",
    "generate": "lower --max-new-tokens",
}
ROOM_TO_TRAIN = (
    "lower --train.batch-size, raise --train.grad-accum, or make the model smaller (--model.d-model, --model.n-layers, "
    "--model.context-length)"
)


class Failure(NamedTuple):
    """kind: `input`, `contract`, `save`, `memory` or `interrupted`, as --json states it. status: the exit status."""

    kind: str
    message: str
    status: int


def failure_of(error: BaseException, verb: str, options: Collection[str] = ()) -> Failure | None:
    """What `error`, raised by `jaxlm VERB`, means; None for a fault of the program, which needs its traceback.

    options: the names of those that the verb or its action takes, as far as they are known.
    """
    text = str(error)
    if isinstance(error, ImportError) and isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
        error, text = KeyboardInterrupt(), ""  # Ctrl-C while a compiled module was loaded
    if isinstance(error, KeyboardInterrupt):
        again = text or ("the same command goes on" if verb in RESUMABLE else "")
        return Failure("interrupted", f"interrupted; {again}" if again else "interrupted", 3)
    if isinstance(error, InputError):
        return Failure("input", text, 2)
    if isinstance(error, ContractError):
        return Failure("contract", text, 1)
    if isinstance(error, OSError):
        return _of_the_system(error, can_choose="out" in options or verb in RESUMABLE)
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        found = f"{error.object!a} where the locale knows {error.encoding} only"
        return Failure("input", f"expected a name that the system can be told, found {found}; set PYTHONUTF8=1", 2)
    if _is_save_error(error):
        return Failure("save", text, 1)
    if isinstance(error, MemoryError):
        return Failure("memory", f"expected memory of this machine for what was asked, found none left: {text or verb}", 1)
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
        found = text.splitlines()[0]
        return Failure("memory", f"expected what fits the device's memory, found {found}; {ROOM.get(verb, ROOM_TO_TRAIN)}", 1)
    if _is_of_platforms(error):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        found = text.splitlines()[0] if text else "none that starts"
        mend = "unset JAX_PLATFORMS, or set it to cpu"
        return Failure("input", f"JAX_PLATFORMS={platforms}: expected a platform of this machine, found {found}; {mend}", 2)
    return None


def _of_the_system(error: OSError, *, can_choose: bool) -> Failure | None:
    if error.filename == STDOUT:
        found = f"expected it to take what is printed, found: {error.strerror}"
        return Failure("save", f"{STDOUT}: {found}; send it elsewhere, then give the same command again", 1)
    if error.errno in FULL:
        where = error.filename or "the disk"
        elsewhere = ", or choose another place with --out" if can_choose else ""
        mend = f"free some space{elsewhere}; then give the same command again"
        return Failure("save", f"{where}: expected room on the disk, found: {error.strerror}; {mend}", 1)
    if error.filename is None:
        return None
    return Failure("input", f"{error.filename}: expected a path that can be used, found: {error.strerror}", 2)


def _is_save_error(error: BaseException) -> bool:
    room = sys.modules.get("jaxlm.checkpoint")
    return room is not None and isinstance(error, room.SaveError)


def _is_of_platforms(error: BaseException) -> bool:
    """Whether jax found no platform that it may use: it says so, or fails without a word where it looks for one."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("Unable to initialize backend", "Unknown backend"))
    if not isinstance(error, AssertionError) or str(error) or "JAX_PLATFORMS" not in os.environ:
        return False
    cause = error.__cause__ or error  # jax may keep its own frames there
    frames = [*traceback.extract_tb(error.__traceback__), *traceback.extract_tb(cause.__traceback__)]
    return any(os.path.basename(frame.filename) == "xla_bridge.py" for frame in frames)
