"""The end of a process of several that nothing can hold up: neither the other processes, nor a stream that takes no words."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import NoReturn

PATIENCE = 5.0  # seconds for the last words: a pipe may be full, and the one who should empty it gone
_one = threading.RLock()  # of two threads that leave, the first has the word


def leave(status: int, message: str, *, before: str = "") -> NoReturn:
    """End this process at once, without the farewells in which jax would wait for the others.

    message: the last line on standard error. before: lines ahead of it, a traceback say. Standard error may be closed or
    full, and the process ends all the same.
    """
    with _one:
        try:
            writer = threading.Thread(target=_say, args=(f"{before}jaxlm: {message}\n",), name="last words", daemon=True)
            writer.start()
            writer.join(PATIENCE)
        finally:
            os._exit(status)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        left = text.encode(errors="backslashreplace")
        while left:
            left = left[os.write(2, left) :]
    with contextlib.suppress(Exception):  # whatever the stream is
        sys.stdout.flush()


def stacks() -> str:
    """Where each thread of this process is, in words; nothing is read from a disk, which may be what is stuck."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for number, frame in sys._current_frames().items():
        lines.append(f"thread {names.get(number, number)}, the innermost call first:")
        at = frame
        while at is not None:
            lines.append(f"  {at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}")
            at = at.f_back  # type: ignore[assignment]
    return "\n".join([*lines, ""])
