"""What a verb prints: lines for a person, or one JSON object for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.contract import InputError, plain, write_atomic


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
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def piece(self, text: str) -> None:
        """Text without a line end, at once; nothing with --json."""
        if not self.as_json:
            print(text, end="", flush=True)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        print(text, file=sys.stderr, flush=True)

    def result(self, body: Mapping[str, Any]) -> None:
        """The result of the verb: printed with --json, and only once."""
        if self.as_json and not self._printed:
            self._printed = True
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
    if not Path(path).name:
        raise InputError(f"{option}: expected the name of a new file, found {path!r}")
    if Path(path).exists():
        raise InputError(f"{path}: expected a new file, found one in use; choose another name for {option}, or remove it")


def write_new(path: str, content: bytes, *, option: str) -> None:
    """Write a new file, whole or not at all, and the directories above it. Raises InputError where there is one."""
    require_new(path, option=option)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
