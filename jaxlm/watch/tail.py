"""A chained log that is read while it grows: each call gives the records that have come since the last one.

The same lines are taken as by `jaxlm.watch.sinks.read_log`, up to the first that breaks the chain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.watch.sinks import START, continued


class Tail:
    """The place in a log up to which it was read.

    lines: records given so far. times: how often the log was begun anew, since another file took its place (a resumed run
    is cut back to its checkpoint) or it became shorter; whoever gathers records then starts over. broken: whether a whole
    line broke the chain, after which nothing more is given until the log is begun anew.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.times = 0
        self._file_id: tuple[int, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self.lines, self.broken = 0, False
        self._at, self._chain = 0, START

    def changed(self) -> bool:
        """Whether the log has grown or was replaced since it was last read; one that was replaced is begun anew."""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            return False
        found = (stat.st_dev, stat.st_ino)
        if self._file_id is not None and (found != self._file_id or stat.st_size < self._at):
            self.times += 1
            self._begin()
        self._file_id = found
        return stat.st_size > self._at and not self.broken

    def new(self) -> Iterator[dict[str, Any]]:
        """The records that have come; half a line at the end, which is being written, waits for the next call."""
        if not self.changed():
            return
        with open(self.path, "rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                found = continued(self._chain, line[:-1])
                if found is None:
                    self.broken = True
                    return
                record, self._chain = found
                self._at += len(line)
                self.lines += 1
                yield record
