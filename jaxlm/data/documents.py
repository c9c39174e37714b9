"""Raw text in: documents from files, folders, globs, and the standard library of the running Python.

Order is fixed (sorted paths, lines as they stand), memory bounded (one document at a time), and everything that is dropped or
repaired is counted.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import io
import json
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config.schema import DataConfig
from jaxlm.contract import InputError
from jaxlm.data.mojibake import Mojibake

STDLIB = "stdlib:"
WHOLE = (".txt", ".md", ".rst", ".py")  # a file is a document, or several with a separator between them
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")  # a line is a document
SUFFIXES = (*WHOLE, *LINES, ".parquet")
_SURROGATE = re.compile("[\ud800-\udfff]")  # no UTF-8 stands for one; JSON can escape half a pair


class Document(NamedTuple):
    """text: never empty. origin: where it stands, for messages."""

    text: str
    origin: str


@dataclass
class Counts:
    """What reading met, by source: documents and bytes of UTF-8 that were given out, and what was dropped or repaired."""

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    invalid_utf8: int = 0  # documents in which invalid bytes were replaced by U+FFFD
    mojibake: int = 0  # documents whose text is UTF-8 that was decoded as cp1252 or Latin-1 and encoded again
    truncated: bool = False  # stopped at max_bytes
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As the manifest holds them."""
        return dataclasses.asdict(self)


def read_documents(cfg: DataConfig, counts: Counts | None = None) -> Iterator[Document]:
    """All documents of `cfg.source`, in a fixed order, until `cfg.max_bytes` bytes of UTF-8 were given out (0: all).

    counts: filled while documents are read. Empty documents are dropped. Invalid UTF-8 is replaced and counted, or refused
    with `cfg.strict`. Raises InputError for a missing file, an unknown suffix, a damaged file, a line that is no JSON or has
    no text; and at the end where there was no document at all, or more than a share `cfg.max_mojibake` of those with characters
    beyond ASCII are mojibake.
    """
    counts = Counts() if counts is None else counts
    mojibake = Mojibake()
    for source in cfg.source:
        here = counts.by_source.setdefault(source, {"documents": 0, "bytes": 0})
        for raw, origin in _raw(source, cfg):
            text = _text(raw, origin, cfg.strict, counts)
            if not text:
                counts.empty += 1
                continue
            size = len(text.encode())
            if cfg.max_bytes and counts.bytes + size > cfg.max_bytes and counts.documents:
                counts.truncated = True
                mojibake.require_little(cfg.max_mojibake)
                return
            counts.documents += 1
            counts.bytes += size
            counts.mojibake += mojibake.see(text, origin)
            here["documents"] += 1
            here["bytes"] += size
            yield Document(text, origin)
    if not counts.documents:
        raise InputError(f"--data.source: expected text in {', '.join(cfg.source)}, found no document that is not empty")
    mojibake.require_little(cfg.max_mojibake)


def _text(raw: bytes | str, origin: str, strict: bool, counts: Counts) -> str:
    if isinstance(raw, str):
        lone = _SURROGATE.search(raw)
        if lone is None:
            return raw
        found, repaired = f"the lone surrogate U+{ord(lone[0]):04X} at character {lone.start()}", _SURROGATE.sub("\ufffd", raw)
    else:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason})"
        repaired = raw.decode(errors="replace")
    if strict:
        mend = "mend the text, or leave --data.strict off to replace and count it"
        raise InputError(f"{origin}: expected UTF-8, found {found}; {mend}")
    counts.invalid_utf8 += 1
    return repaired


def _raw(source: str, cfg: DataConfig) -> Iterator[tuple[bytes | str, str]]:
    """Text as it stands and where, of one source."""
    if source == STDLIB:
        yield from _stdlib()
        return
    for path in files_of(source):
        name = path.name.lower()
        if name.endswith(WHOLE):
            yield from _cut(_read(path, lambda p: p.read_bytes()), str(path), cfg.separator)
        elif name.endswith(".parquet"):
            yield from _parquet(path, cfg.text_field)
        else:
            yield from _jsonl(path, cfg.text_field)


def _cut(raw: bytes, origin: str, separator: str) -> Iterator[tuple[bytes, str]]:
    """A text file as one document, or as those between separators, in which `\\n`, `\\t` and `\\r` stand for what they name."""
    if not separator:
        yield raw, origin
        return
    for escape, letter in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r")):
        separator = separator.replace(escape, letter)
    for number, part in enumerate(raw.split(separator.encode()), 1):
        yield part, f"{origin}:{number}"


def files_of(source: str) -> list[Path]:
    """The files of a source: itself, or those below a folder or matched by a glob that have a known suffix, sorted."""
    path = Path(source)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{source}: expected a file with one of {' '.join(SUFFIXES)}, found {path.suffix or 'no suffix'}")
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
    elif glob.has_magic(source):
        found = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())
        if other := [p for p in found if not p.name.lower().endswith(SUFFIXES)]:
            raise InputError(f"{other[0]}: expected a file with one of {' '.join(SUFFIXES)}, matched by {source}")
    else:
        raise InputError(f"--data.source: expected a file, a folder, a glob or {STDLIB}, found nothing at {source!r}")
    if not found:
        raise InputError(f"{source}: expected files with one of {' '.join(SUFFIXES)}, found none")
    return found


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """`read(path)`, with what a damaged or forbidden file raises as InputError."""
    try:
        return read(path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a file that can be read, found {type(error).__name__}: {error}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that may be compressed."""
    name = path.name.lower()
    if name.endswith(".zst"):
        import_error = "--data.source: reading .zst needs zstandard; `pip install 'jaxlm[data]'`"
        try:
            import zstandard
        except ImportError:
            raise InputError(import_error) from None
        with _read(path, lambda p: open(p, "rb")) as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            try:
                yield from io.BufferedReader(stream)
                _whole_zst(path, zstandard)
            except (zstandard.ZstdError, OSError) as error:
                raise InputError(f"{path}: expected a whole zstd file, found {error}") from None
        return
    if name.endswith(".gz") and not path.stat().st_size:
        raise InputError(f"{path}: expected a whole gzip file, found one of 0 bytes; copy it again")
    opener: Any = gzip.open if name.endswith(".gz") else open
    with _read(path, lambda p: opener(p, "rb")) as file:
        while line := _read(path, lambda _: file.readline()):
            yield line


def _whole_zst(path: Path, zstandard: Any) -> None:
    """A truncated frame ends without a word in the stream reader; decoding it again to its end mark does not."""
    decoder = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
    with open(path, "rb") as file:
        block = file.read(1 << 20)
        while block:
            decoder.decompress(block)
            if decoder.eof:
                block = decoder.unused_data or file.read(1 << 20)
                if block:
                    decoder = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
                continue
            block = file.read(1 << 20)
    if not decoder.eof:
        raise InputError(f"{path}: expected a whole zstd file, found one that is cut off; copy it again")


def _jsonl(path: Path, text_field: str) -> Iterator[tuple[bytes | str, str]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        whole = line.decode("utf-8-sig", "surrogateescape")
        try:
            body = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected a JSON object, found {error}") from None
        text = _field(body, text_field, where)
        yield (_bytes_again(text) if _SURROGATE.search(whole) else text), where


def _bytes_again(text: str) -> bytes:
    """The bytes of a text that was read with `surrogateescape`: what is no UTF-8 in the file is none here."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair, escaped in JSON, as well
        return text.encode("utf-8", "surrogatepass")


def _field(body: Any, name: str, where: str) -> str:
    if not isinstance(body, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(body).__name__}")
    if name not in body:
        raise InputError(f"{where}: expected the field {name!r}, found {', '.join(body) or 'none'}; set --data.text-field")
    if not isinstance(body[name], str):
        found = "null" if body[name] is None else type(body[name]).__name__
        raise InputError(f"{where}: expected text in the field {name!r}, found {found}")
    return body[name]


def _parquet(path: Path, text_field: str) -> Iterator[tuple[bytes, str]]:
    """Texts of a column as bytes: whether they are UTF-8 is for the caller to see."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError("--data.source: reading .parquet needs pyarrow; `pip install 'jaxlm[data]'`") from None
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        if text_field not in file.schema_arrow.names:
            found = ", ".join(file.schema_arrow.names)
            raise InputError(f"{path}: expected the column {text_field!r}, found {found}; set --data.text-field")
        kind = file.schema_arrow.field(text_field).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            raise InputError(f"{path}: expected text in the column {text_field!r}, found {kind}")
        row = 0
        for batch in file.iter_batches(columns=[text_field], batch_size=256):
            for value in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                row += 1
                if value is None:
                    raise InputError(f"{path}: expected text in the column {text_field!r}, found null in row {row}")
                yield value, f"{path}:{row}"
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected a whole parquet file, found {' '.join(str(error).split())}") from None


def _stdlib() -> Iterator[tuple[bytes | str, str]]:
    """The running Python's own text: its language documentation, then the source of its library, tests left out."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name], f"{STDLIB}pydoc_data.topics[{name!r}]"
    root = Path(sysconfig.get_paths()["stdlib"])
    unwanted = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
    paths: Iterable[Path] = (p for p in root.rglob("*.py") if not unwanted.intersection(p.relative_to(root).parts))
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        yield _read(path, lambda p: p.read_bytes()), f"{STDLIB}{path.relative_to(root).as_posix()}"
