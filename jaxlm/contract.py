"""Contracts between layers: what an artifact promises, its fingerprint, and the check that the next layer makes.

An artifact is a directory with a `manifest.json`. The manifest names its kind, the facts that the next layer relies on,
the fingerprints of its parents and the sha256 of its files; the fingerprint is the sha256 of all of these in canonical
JSON. `provenance` (time, versions, command) is recorded and protected against change, but is no part of the fingerprint:
the same artifact made twice has the same fingerprint.

A name or a size is never enough: two tokenizers of equal size differ. `check(upstream, downstream)` compares the
fingerprint that the downstream artifact recorded for its parent with the fingerprint of the artifact that is there,
and then every fact that both sides state (`RELATIONS`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"


class InputError(ValueError):
    """A user's mistake: says what was expected, what was found, and what mends it. The command line exits with 2."""


class ContractError(Exception):
    """A contract between two layers is broken. The command line exits with 1.

    contract: its name, as in the table of contracts. artifact: the path or name of what broke it.
    expected, found: both values. remedy: what mends it.
    """

    def __init__(self, contract: str, *, artifact: object, expected: object, found: object, remedy: str = ""):
        self.contract, self.artifact, self.expected, self.found = contract, str(artifact), expected, found
        self.remedy = remedy
        text = f"contract '{contract}' is broken at {artifact}: expected {expected}, found {found}"
        super().__init__(f"{text}. {remedy}" if remedy else text)


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison: `kept`, or broken with both values."""

    contract: str
    artifact: str
    kept: bool
    expected: Any
    found: Any
    remedy: str = ""

    def error(self) -> ContractError:
        """This finding as the exception that stops a run."""
        return ContractError(
            self.contract, artifact=self.artifact, expected=self.expected, found=self.found, remedy=self.remedy
        )


# ---- fingerprints ------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` with dataclasses, tuples, sets, paths and NumPy scalars turned into what JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a manifest: {value!r}")


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, ASCII. NaN and infinity are refused (ValueError)."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- manifests ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: sha256 of its bytes and its length in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileRecord:
        """Read `path` and record it."""
        return cls(sha256=file_sha256(path), bytes=os.path.getsize(path))


@dataclass(frozen=True)
class Manifest:
    """What an artifact promises. `fingerprint` covers everything but `provenance`."""

    kind: str
    facts: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, format, facts, parents and files."""
        return fingerprint(
            {"kind": self.kind, "format": self.format, "facts": self.facts, "parents": self.parents, "files": self.files}
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, with its fingerprint and a digest over all the rest."""
        body = plain(self) | {"fingerprint": self.fingerprint}
        return body | {"digest": fingerprint(body)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, artifact: object) -> Manifest:
        """Rebuild a manifest, verifying its fingerprint and digest. Raises ContractError."""
        found = dict(body)
        if not isinstance(found.get("kind"), str):
            raise ContractError("manifest", artifact=artifact, expected="a manifest of jaxlm", found="other JSON")
        digest = found.pop("digest", None)
        contract = found["kind"]
        if digest != (expected := fingerprint(found)):
            raise ContractError(contract, artifact=artifact, expected=f"digest {digest}", found=expected, remedy=_REBUILD)
        if found.get("format") != FORMAT:
            raise ContractError(
                contract,
                artifact=artifact,
                expected=f"format {FORMAT}",
                found=f"format {found.get('format')}",
                remedy="Read it with the version of jaxlm that wrote it.",
            )
        recorded = found.pop("fingerprint", None)
        wanted = [f.name for f in dataclasses.fields(cls)]
        if set(found) != set(wanted):
            fields, have = (", ".join(sorted(names)) for names in (wanted, found))
            raise ContractError(contract, artifact=artifact, expected=f"the fields {fields}", found=have, remedy=_REBUILD)
        found["files"] = {name: FileRecord(**record) for name, record in found["files"].items()}
        manifest = cls(**found)
        if manifest.fingerprint != recorded:
            raise ContractError(
                contract, artifact=artifact, expected=f"fingerprint {recorded}", found=manifest.fingerprint, remedy=_REBUILD
            )
        return manifest

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `directory/manifest.json` atomically; it is the last file of an artifact to be written."""
        body = json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(Path(directory) / MANIFEST, body.encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str], kind: str | None = None) -> Manifest:
        """Read `directory/manifest.json` and verify it against itself, every byte. Raises ContractError or InputError."""
        path = Path(directory) / MANIFEST
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            wanted = f"a {kind} artifact" if kind else "an artifact of jaxlm"
            raise InputError(f"{directory}: expected {wanted} (a directory with {MANIFEST}), found none") from None
        contract = kind or "manifest"
        try:
            body = json.loads(raw)
            same = raw == (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
        except (ValueError, UnicodeDecodeError) as error:
            raise ContractError(contract, artifact=path, expected="JSON", found=str(error), remedy=_REBUILD) from None
        if not isinstance(body, dict) or not same:
            raise ContractError(
                contract, artifact=path, expected="the bytes that were written", found="others", remedy=_REBUILD
            )
        manifest = cls.from_json(body, artifact=path)
        if kind is not None and manifest.kind != kind:
            raise ContractError(kind, artifact=path, expected=f"kind {kind}", found=f"kind {manifest.kind}")
        return manifest

    def verify_files(self, directory: str | os.PathLike[str]) -> Iterator[Finding]:
        """Compare every recorded file with what lies in `directory`: missing, of another length, or changed.

        A file that is not recorded is no finding here: what may lie beside the recorded ones is for each kind to say.
        """
        root = Path(directory)
        for name, record in sorted(self.files.items()):
            path = root / name
            expected: object = f"{record.bytes} bytes, sha256 {record.sha256}"
            if not path.is_file():
                yield Finding(self.kind, str(path), False, expected, "no such file", _REBUILD)
            elif (size := path.stat().st_size) != record.bytes:
                yield Finding(self.kind, str(path), False, f"{record.bytes} bytes", f"{size} bytes", _REBUILD)
            elif (found := file_sha256(path)) != record.sha256:
                yield Finding(self.kind, str(path), False, f"sha256 {record.sha256}", f"sha256 {found}", _REBUILD)
            else:
                yield Finding(self.kind, str(path), True, record.sha256, record.sha256)

    def require_files(self, directory: str | os.PathLike[str], only: Callable[[str], bool] = lambda _: True) -> None:
        """Raise ContractError at the first file (of those that `only` selects) that differs from the record."""
        chosen = dataclasses.replace(self, files={name: record for name, record in self.files.items() if only(name)})
        for finding in chosen.verify_files(directory):
            if not finding.kept:
                raise finding.error()


_REBUILD = "Restore it from a copy, or make the artifact again."


# ---- writing -----------------------------------------------------------------------------------------------------


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` under a temporary name, flush it to the disk, and rename it to `path`. An OSError names `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Let an OSError of this block name `path`: what fails on an open file names none, and a temporary name means nothing."""
    try:
        yield Path(path)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def make_folder(directory: str | os.PathLike[str]) -> None:
    """Make a directory and those above it, where they are not there. Raises NotADirectoryError where a file is in the way."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Make a rename in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with naming(directory):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_below(root: str | os.PathLike[str]) -> None:
    """Flush every file and directory below `root` to the disk, so that the rename that commits it comes last there too."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync_directory(Path(folder, name))  # fsync needs no more than a descriptor
        sync_directory(folder)


@contextmanager
def new_artifact(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory beside `directory`, flushed and renamed to it when the block ends well, removed when it does not.

    Raises InputError where `directory` exists and is not empty: an artifact is never written over. An OSError names the
    artifact, or the file of it, by the name that it would have had.
    """
    final = Path(directory)
    if not final.name.strip("."):
        raise InputError(f"{final}: expected the name of a new directory, found none; give it as {final / 'NAME'}")
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"{final}: expected a new or empty directory, found one in use; choose another or remove it")
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming(final):
        temporary.mkdir()
    try:
        yield temporary
        sync_below(temporary)
        if final.exists():
            final.rmdir()
        os.replace(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            error.filename = str(error.filename or final).replace(str(temporary), str(final))
        raise
    sync_directory(final.parent)


def record_files(directory: str | os.PathLike[str], *, beside: Iterable[str] = (MANIFEST,)) -> dict[str, FileRecord]:
    """Every file below `directory` with its record, but for the names in `beside`. Keys are `/`-joined relative paths."""
    root, skipped = Path(directory), set(beside)
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    names = {p.relative_to(root).as_posix(): p for p in paths}
    return {name: FileRecord.of(path) for name, path in names.items() if name not in skipped}


# ---- checks between layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """A fact of the upstream artifact that a fact of the downstream one must agree with."""

    upstream: str
    downstream: str
    agree: Callable[[Any, Any], bool] = lambda up, down: up == down
    words: str = "equal"


PARENTS: dict[str, tuple[str, ...]] = {
    "data": ("tokenizer",),
    "model": ("tokenizer",),
    "run": ("tokenizer", "data"),
    "checkpoint": ("tokenizer", "data", "model", "run"),
    "evaluation": ("tokenizer", "data", "checkpoint"),
    "bundle": ("run",),
}
"""The kinds of artifacts that each kind was made from: it records the fingerprint of every one of them."""

RELATIONS: dict[tuple[str, str], tuple[Relation, ...]] = {
    ("tokenizer", "data"): (
        Relation("vocab_size", "vocab_size"),
        Relation("probe_sha256", "tokenizer_probe_sha256"),
        Relation("vocab_size", "max_id", lambda up, down: down < up, "above"),
        Relation("document_rule", "document_rule"),
    ),
    ("tokenizer", "model"): (Relation("vocab_size", "vocab_size"),),
    ("data", "model"): (Relation("max_id", "vocab_size", lambda up, down: up < down, "below"),),
    ("model", "checkpoint"): (Relation("spec_sha256", "spec_sha256"),),
    ("tokenizer", "evaluation"): (Relation("document_rule", "document_rule"),),
}


def compare(upstream: Manifest, downstream: Manifest, *, artifact: object = "") -> list[Finding]:
    """Every comparison between two neighbouring artifacts, kept or broken, without raising.

    artifact: the path of the downstream artifact, for the message.
    """
    name, where = downstream.kind, str(artifact) or downstream.kind
    remedy = f"Use the {upstream.kind} that it was made with, or make it again with this one."
    findings = []
    if upstream.kind in downstream.parents or upstream.kind in PARENTS.get(name, ()):
        recorded = downstream.parents.get(upstream.kind)
        expected = f"{upstream.kind} {recorded}" if recorded else f"a parent of kind {upstream.kind}"
        found = f"{upstream.kind} {upstream.fingerprint}" if recorded else "none"
        findings.append(Finding(name, where, recorded == upstream.fingerprint, expected, found, remedy))
    for relation in RELATIONS.get((upstream.kind, downstream.kind), ()):
        if relation.upstream not in upstream.facts or relation.downstream not in downstream.facts:
            missing = relation.upstream if relation.upstream not in upstream.facts else relation.downstream
            findings.append(Finding(name, where, False, f"the fact {missing!r}", "none", _REBUILD))
            continue
        up, down = upstream.facts[relation.upstream], downstream.facts[relation.downstream]
        findings.append(
            Finding(
                name,
                where,
                relation.agree(up, down),
                f"{upstream.kind}.{relation.upstream} {relation.words} {downstream.kind}.{relation.downstream}: {up!r}",
                f"{down!r}",
                remedy,
            )
        )
    if not findings:
        findings.append(Finding(name, where, False, f"a contract with {upstream.kind}", "none", "They are not neighbours."))
    return findings


def check(upstream: Any, downstream: Any) -> list[Finding]:
    """Compare two neighbouring artifacts and raise ContractError, with both values, at the first broken contract.

    Each side is a `Manifest`, an object with a `.manifest`, or the path of an artifact. Returns the findings, all kept.
    """
    up, down = _manifest_of(upstream), _manifest_of(downstream)
    findings = compare(up, down, artifact=downstream if isinstance(downstream, (str, os.PathLike)) else "")
    for finding in findings:
        if not finding.kept:
            raise finding.error()
    return findings


def _manifest_of(artifact: Any) -> Manifest:
    if isinstance(artifact, Manifest):
        return artifact
    if isinstance(artifact, (str, os.PathLike)):
        return Manifest.load(artifact)
    manifest = getattr(artifact, "manifest", None)
    if not isinstance(manifest, Manifest):
        raise TypeError(f"expected a Manifest, an artifact or a path, found {type(artifact).__name__}")
    return manifest
