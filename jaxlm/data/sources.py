"""A document against its source, read a second time by the plainest code that does: what is written is what lies there.

All that counts and compares documents begins with what the reading gave. A step that cleans, cuts or normalises in there is
seen by nothing that comes after it, so some documents are looked up where they say they stand.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import sysconfig
from pathlib import Path
from typing import Any

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data.documents import LINES, STDLIB, WHOLE, Document

REACH = 1 << 22  # bytes of a file that are read for one document, at most
AROUND = 24  # bytes that a message shows, from the first that differs


class Sources:
    """Looks some of the documents up as they are read: the first, the second, the fourth, the eighth and so on, and all that
    are longer than those before, which are about as few; each in a few milliseconds."""

    def __init__(self, cfg: DataConfig):
        self._cfg, self._number, self._longest = cfg, 0, 0

    def require(self, document: Document) -> None:
        """Raise ContractError where the next document has another text than its source, if it is one to be looked at."""
        self._number += 1
        if self._number & (self._number - 1) and len(document.text) <= self._longest:
            return
        self._longest = max(self._longest, len(document.text))
        require_as_it_stands(document, self._cfg)


def require_as_it_stands(document: Document, cfg: DataConfig) -> None:
    """Raise ContractError where a document has another text than its source holds at its origin.

    Of a text beyond `REACH` the part before is compared. Passed over is what lies beyond it in a file of many documents, and a
    text with U+FFFD, which may stand for what is no UTF-8.
    """
    if "\ufffd" in document.text:
        return
    held = _held(document.origin, cfg)
    if held is None:
        return
    text = document.text.encode()
    found = text[: len(held)] if len(held) == REACH else text
    if found != held:
        same = next((i for i, (a, b) in enumerate(zip(found, held, strict=False)) if a != b), min(len(found), len(held)))
        raise ContractError(
            "data",
            artifact=document.origin,
            expected=f"the text of its source, {len(held)} bytes, at byte {same} {held[same : same + AROUND]!r}",
            found=f"{len(found)} bytes, there {found[same : same + AROUND]!r}",
            remedy="Reading changed the text before anything was counted, or the file was written to meanwhile: build again.",
        )


def _held(origin: str, cfg: DataConfig) -> bytes | None:
    """What a source holds, UTF-8, at most `REACH` bytes; None where that would have to be looked for further on."""
    if origin.startswith(f"{STDLIB}pydoc_data.topics["):
        from pydoc_data.topics import topics

        return topics[ast.literal_eval(origin.partition("[")[2][:-1])].encode()
    if origin.startswith(STDLIB):
        return _first(Path(sysconfig.get_paths()["stdlib"]) / origin.removeprefix(STDLIB))
    if origin.lower().endswith(WHOLE):
        return _first(Path(origin))
    name, _, number = origin.rpartition(":")
    path, place = Path(name), int(number)
    if name.lower().endswith(WHOLE):
        return _part(_first(path), place, cfg.separator)
    text = _line(path, place, cfg.text_field) if name.lower().endswith(LINES) else _cell(path, place, cfg.text_field)
    return None if text is None else text.encode(errors="replace")[:REACH]


def _first(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(REACH)


def _part(content: bytes, number: int, separator: str) -> bytes | None:
    """The part with this number of a text file; None where the part, or its end, was not read."""
    parts = content.split(separator.replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\r", "\r").encode())
    complete = len(parts) - (len(content) == REACH)
    return parts[number - 1] if number <= complete else None


def _line(path: Path, number: int, field: str) -> str | None:
    """The text in this line of a JSON lines file; None where it lies too far on."""
    size = 0
    with _opened(path) as file:
        for at, line in enumerate(file, 1):
            size += len(line)
            if at == number:
                return str(json.loads(line.decode("utf-8-sig", "replace"))[field])
            if size > REACH:
                break
    return None


def _opened(path: Path) -> Any:
    if path.name.lower().endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True))
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _cell(path: Path, number: int, field: str) -> str | None:
    """The text in this row of the first row group of a parquet file; None where it lies in another, or that one is large."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    group = file.metadata.row_group(0)
    if number > group.num_rows or group.total_byte_size > REACH:
        return None
    return str(file.read_row_group(0, columns=[field]).column(0)[number - 1].as_py())
