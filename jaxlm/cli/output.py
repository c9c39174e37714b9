"""What a verb prints: lines for a person, or one JSON object for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from jaxlm.contract import plain


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
