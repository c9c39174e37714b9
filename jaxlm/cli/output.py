"""What a verb prints: lines for a person, or one JSON object for a script."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.contract import InputError, make_folder, plain, write_atomic

STDOUT = "standard output"
STDIO = "-"  # as a file's name: standard input or output


class Closed(io.TextIOBase):
    """Standard output that was closed before the process began: whoever prints is told that nobody reads, and so is the end."""

    lost = False

    @property
    def buffer(self) -> Closed:
        """What takes bytes is closed as well."""
        return self

    def write(self, text: str | bytes) -> int:
        """Raise BrokenPipeError, but not for nothing, which rich writes now and then."""
        if not text:
            return 0
        self.lost = True
        raise BrokenPipeError(errno.EPIPE, "closed")

    def flush(self) -> None:
        """Raise BrokenPipeError if anything was written: not everyone who writes lets an error pass."""
        if self.lost:
            raise BrokenPipeError(errno.EPIPE, "closed")

    def close(self) -> None:
        """End without a word: Python 3.13 flushes and closes as it forgets an object, when all has been said."""
        self.lost = False
        super().close()


@contextmanager
def printing() -> Iterator[None]:
    """Let an OSError of this block name standard output, unless it is that nobody reads it, which says it all."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


class Output:
    """Where a verb's words go.

    Without --json, lines go to standard output. With it, standard output holds exactly one JSON object, and lines go to
    standard error.
    """

    def __init__(self, *, as_json: bool):
        self.as_json = as_json
        self._printed = False

    def line(self, text: str = "") -> None:
        """A line for a person."""
        if self.as_json:
            self.warn(text)
            return
        with printing():
            print(text, flush=True)

    def piece(self, text: str) -> None:
        """Text without a line end, at once; nothing with --json."""
        if not self.as_json:
            with printing():
                print(text, end="", flush=True)

    def raw(self, content: bytes) -> None:
        """Bytes as they are, on standard output: not for --json, whose object has it for itself."""
        assert not self.as_json
        with printing():
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()

    def warn(self, text: str) -> None:
        """A line on standard error."""
        print(text, file=sys.stderr, flush=True)

    def result(self, body: Mapping[str, Any]) -> None:
        """The result of the verb: printed with --json, and only once."""
        if self.as_json and not self._printed:
            self._printed = True
            with printing():
                print(json.dumps(plain(body), allow_nan=False), flush=True)


class Part(Output):
    """The output of a verb that another verb calls: lines go the same way, the result is kept instead of printed."""

    def __init__(self, whole: Output):
        super().__init__(as_json=whole.as_json)
        self.kept: Mapping[str, Any] = {}

    def result(self, body: Mapping[str, Any]) -> None:
        """Keep the result for the verb that called."""
        self.kept = body


def require_new(path: str, *, option: str) -> None:
    """Raise InputError where `path` cannot be a new file: a verb never writes over what is there."""
    if path == STDIO:
        raise InputError(f"{option}: expected a file, found {STDIO}; ./{STDIO} is a file of that name")
    if not Path(path).name:
        raise InputError(f"{option}: expected the name of a new file, found {path!r}")
    if Path(path).exists():
        raise InputError(f"{path}: expected a new file, found one in use; choose another name for {option}, or remove it")


def write_new(path: str, content: bytes, *, option: str) -> None:
    """Write a new file, whole or not at all, and the directories above it. Raises InputError where there is one."""
    require_new(path, option=option)
    make_folder(Path(path).parent)
    write_atomic(path, content)
