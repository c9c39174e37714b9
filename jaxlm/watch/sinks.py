"""Append-only logs of JSON lines in which every line vouches for all lines before it.

Each line ends in `"chain"`: the sha256 of the line before it and of its own content, cut to 16 hexadecimal digits. One
changed, dropped or inserted byte breaks the chain at its line, so a log that grows while it is used is still an artifact
that can be checked. A killed process may leave half a line at the end; `ChainedLog` drops it on opening, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.contract import Finding, naming, write_atomic

START = "0" * 16  # the chain value before the first line
_COPY = "Restore it from a copy."
_REMEDY = "Restore it from a copy; the lines before it are whole."
_HALF = "A process that was killed left it: `jaxlm train` of the run drops it."


class Mark(NamedTuple):
    """A place in a log: how many lines stand before it, and their chain value."""

    lines: int
    chain: str


def _link(chain: str, body: bytes) -> str:
    return hashlib.sha256(f"{chain}\n".encode() + body).hexdigest()[:16]


def _line(chain: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """The new chain value and the line (without its end) for `record`."""
    body = json.dumps(record, separators=(", ", ": "), allow_nan=False)
    chain = _link(chain, body.encode())
    return chain, f'{body[:-1]}{", " if record else ""}"chain": "{chain}"}}'


_END = re.compile(rb'"chain": "([0-9a-f]{16})"\}')
_LONG = len('"chain": ""}') + len(START)


def continued(chain: str, line: bytes) -> tuple[dict[str, Any], str] | None:
    """The record of a line (without its end) that continues `chain`, and the chain value after it; None for another line.

    The text is checked as it stands, without being written again for comparison.
    """
    start, end = line[:-_LONG], _END.fullmatch(line[-_LONG:])
    if end is None or not (start == b"{" or start.endswith(b", ")):
        return None
    body = start.removesuffix(b", ") + b"}"
    found = end[1].decode()
    if _link(chain, body) != found:
        return None
    try:
        record = json.loads(body)
    except ValueError:
        return None
    return (record, found) if isinstance(record, dict) else None


def read_log(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Mark]]:
    """Records of a log with the mark after each, up to the first line that breaks the chain."""
    for _, record, mark in _read(path):
        yield record, mark


def _read(path: str | os.PathLike[str]) -> Iterator[tuple[bytes, dict[str, Any], Mark]]:
    """Lines of a log, without their ends, with their records and the marks after them."""
    mark = Mark(0, START)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            found = continued(mark.chain, line[:-1]) if line.endswith(b"\n") else None
            if found is None:
                return
            mark = Mark(mark.lines + 1, found[1])
            yield line[:-1], found[0], mark


def lines_after(path: str | os.PathLike[str], mark: Mark) -> bytes:
    """The lines of a log after a mark, as they stand, up to the first that breaks the chain."""
    return b"".join(line + b"\n" for line, _, at in _read(path) if at.lines > mark.lines)


def last_record(path: str | os.PathLike[str], *, block: int = 1 << 16) -> dict[str, Any] | None:
    """The record of the last line of a log whose chain is known to hold, read from its end; None where there is no line."""
    with open(path, "rb") as file:
        at = file.seek(0, os.SEEK_END)
        content = b""
        while at and content.count(b"\n") < 2:
            start = max(at - block, 0)
            file.seek(start)
            content, at = file.read(at - start) + content, start
    lines = content.splitlines()
    if not lines:
        return None
    record: dict[str, Any] = json.loads(lines[-1])
    return {name: value for name, value in record.items() if name != "chain"}


def verify_log(path: str | os.PathLike[str], *, contract: str, at_least: Mark | None = None, open_end: bool = False) -> Finding:
    """Whether every line of a log continues the chain, and whether it holds the lines that `at_least` marks.

    open_end: half a line at the end is allowed, since a process is writing.
    """
    path = Path(path)
    if not path.is_file():
        return Finding(contract, str(path), False, "a log", "no such file", _COPY)
    ends = START if at_least is None or at_least.lines == 0 else None
    mark = Mark(0, START)
    for _, mark in read_log(path):
        if at_least is not None and mark.lines == at_least.lines:
            ends = mark.chain
    raw = path.read_bytes()
    lines = raw.count(b"\n")
    where = str(path)
    if lines != mark.lines:
        return Finding(contract, where, False, f"line {mark.lines + 1} to continue the chain {mark.chain}", "another", _REMEDY)
    if raw and not raw.endswith(b"\n") and not open_end:
        return Finding(contract, where, False, f"a whole line {lines + 1}", "half a line at the end", _HALF)
    if at_least is not None and ends != at_least.chain:
        found = f"chain {ends}" if ends is not None else f"{mark.lines} lines"
        return Finding(contract, where, False, f"{at_least.lines} lines with chain {at_least.chain}", found, _COPY)
    return Finding(contract, where, True, f"{lines} chained lines", f"{lines} chained lines")


class ChainedLog:
    """A log that is being written. Opening it drops half a line at its end, which a kill may leave.

    keep: drop every line after this mark as well, whatever it is, as a resumed run does with the steps it is about to repeat.
    Raises ValueError where a whole line breaks the chain, or the log does not hold the lines that `keep` marks.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: Mark | None = None):
        self.path = Path(path)
        self._open(keep)

    def _open(self, keep: Mark | None) -> None:
        self.mark = Mark(0, START)
        kept: list[bytes] = []
        if keep is None or keep.lines:
            for line, _, mark in _read(self.path):
                kept.append(line)
                self.mark = mark
                if keep is not None and mark.lines == keep.lines:
                    break
        if keep is not None and self.mark != keep:
            found = f"{self.mark.lines} lines with chain {self.mark.chain}"
            raise ValueError(f"{self.path}: expected {keep.lines} lines with chain {keep.chain}, found {found}")
        content = b"".join(line + b"\n" for line in kept)
        there = self.path.read_bytes() if self.path.exists() else None
        if keep is None and there is not None and there.count(b"\n") != self.mark.lines:
            expected = f"line {self.mark.lines + 1} to continue the chain {self.mark.chain}"
            raise ValueError(f"{self.path}: expected {expected}, found another")
        if there != content:
            write_atomic(self.path, content)
        self._bytes = len(content)
        self._file = open(self.path, "ab", buffering=0)

    def cut(self, keep: Mark) -> None:
        """Drop every line after this mark, and go on from there. Raises ValueError where the log does not hold the lines."""
        self.close()
        self._open(keep)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, whole, to the operating system: it outlives a kill of the process.

        Raises OSError, which names the log, where it cannot (disk full); then the log ends where it ended before.
        """
        chain, line = _line(self.mark.chain, record)
        content = line.encode() + b"\n"
        with naming(self.path):
            try:
                rest = memoryview(content)
                while rest:  # a write to a disk that fills up may be short
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                with suppress(OSError):
                    self._file.truncate(self._bytes)
                raise
        self._bytes += len(content)
        self.mark = Mark(self.mark.lines + 1, chain)

    def sync(self) -> None:
        """Flush to the disk. Raises OSError, which names the log, where that fails."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        if not self._file.closed:
            with self._file:
                self.sync()

    def __enter__(self) -> ChainedLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
