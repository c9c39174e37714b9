"""The walk along the chain of artifacts: every contract between two neighbours, every byte of every file.

It opens each artifact with the code that uses it, so that an artifact which is whole on the disk but means something else
to today's code (another encoding of the probe text, another spec tree) is found as well. Nothing here stops at the first
broken contract: `audit` returns all findings, kept and broken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.load import config_fingerprint, read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import MANIFEST, PARENTS, ContractError, Finding, InputError, Manifest, compare, file_sha256
from jaxlm.data import open_shards
from jaxlm.model import model_manifest
from jaxlm.run.history import History, cursor_of
from jaxlm.run.kept import kept_findings
from jaxlm.run.layout import Layout
from jaxlm.run.lineage import change_findings, changes_of, first_step, parent_findings
from jaxlm.run.logs import log_findings
from jaxlm.run.scores import FIGURES, recomputed
from jaxlm.tokenizer import Tokenizer
from jaxlm.watch import read_log

COPY = "Restore it from a copy, or make it again."


# Facts that this walk reads.
FACTS = {
    "run": ("config_fingerprint", "model", "probes"),
    "checkpoint": ("step", "leaves", "telemetry", "data_cursor"),
    "evaluation": ("step", "split", *FIGURES),
    "bundle": ("step", "alarms"),
}
HOLDERS = {"checkpoints": "checkpoint", "evaluations": "evaluation", "bundles": "bundle"}  # folders of a run that hold several
RESOLVED = "resolved.json"


def audit(path: str | os.PathLike[str]) -> list[Finding]:
    """Check the artifact at `path`: a run with all that it holds, or a tokenizer, data, checkpoint or evaluation alone.

    An artifact inside a run is checked against its neighbours there as well. Raises InputError where `path` is no artifact.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"{root}: expected an artifact (a run, tokenizer, data, checkpoint or evaluation), found nothing")
    if root.is_file():
        root = root.parent
    root = root if root.name.strip(".") else root.resolve()  # `.` has no name to tell a kind or a step by
    kind = _kind(root)
    if kind == "run":
        return list(_run(Layout(root)))
    layout = _run_of(root)
    parts = _Parts.of(layout) if layout is not None else _Parts()
    if kind == "checkpoint" and root.name.isdigit():
        return list(_checkpoint(CheckpointStore(root.parent), int(root.name), parts, deep=True))
    if kind == "evaluation":
        return list(_evaluation(root, parts, CheckpointStore(layout.checkpoints) if layout is not None else None))
    if kind == "bundle":
        return list(_bundle(root, parts))
    findings = list(_plain(root))
    if kind in OPENED:
        findings += _opens(kind, root, OPENED[kind])
    manifest = _readable(root)
    findings += _pair(parts.tokenizer if kind == "data" else None, manifest, root)
    if layout is not None and manifest is not None and kind in PARENTS["run"]:
        findings += _pair(manifest, parts.run, layout.manifest)
    return findings


def _kind(root: Path) -> str:
    """The kind of an artifact, by its manifest or, where that is damaged or lost, by its place."""
    place = (
        "run"
        if (root / RESOLVED).is_file()
        else HOLDERS.get(root.parent.name, root.name if root.name in PARENTS["run"] else "")
    )
    try:
        return Manifest.load(root).kind
    except ContractError:
        return place or "manifest"
    except InputError:
        if place == "run" or (place and _run_of(root) is not None):
            return place
        raise


def _run_of(root: Path) -> Layout | None:
    """The run that an artifact lies in, if it lies in one."""
    return next((Layout(place) for place in (root.parent, root.parent.parent) if (place / RESOLVED).is_file()), None)


def _finding(error: ContractError | InputError, *, contract: str, artifact: Path) -> Finding:
    if isinstance(error, ContractError):
        return Finding(error.contract, error.artifact, False, error.expected, error.found, error.remedy)
    return Finding(contract, str(artifact), False, "an artifact that can be read", str(error))


def _plain(root: Path, kind: str | None = None) -> Iterator[Finding]:
    """The manifest against itself, then every file against the manifest, and no file beside them but in a run."""
    try:
        manifest = Manifest.load(root, kind)
    except (ContractError, InputError) as error:
        yield _finding(error, contract=kind or "manifest", artifact=root)
        return
    yield Finding(manifest.kind, str(root / MANIFEST), True, manifest.fingerprint, manifest.fingerprint)
    yield from _states(root)
    yield from _files(root, list(manifest.verify_files(root)))
    if manifest.kind != "run":
        below = {Path(at, name).relative_to(root).as_posix() for at, _, names in os.walk(root) for name in names}
        yield from (_stranger(manifest.kind, root / name) for name in sorted(below - manifest.files.keys() - {MANIFEST}))


def _stranger(kind: str, path: Path) -> Finding:
    return Finding(
        kind, str(path), False, "no such file", "one", "Remove it, if nothing needs it: nothing of this project made it."
    )


def _states(root: Path) -> Iterator[Finding]:
    """The facts that this walk reads and the manifest, which is whole, does not state."""
    with suppress(ContractError, InputError):
        manifest = Manifest.load(root)
        for name in _unstated(manifest):
            yield Finding(manifest.kind, str(root / MANIFEST), False, f"the fact {name!r}", "none", COPY)


def _unstated(manifest: Manifest) -> list[str]:
    return [name for name in FACTS.get(manifest.kind, ()) if name not in manifest.facts]


def _files(root: Path, findings: list[Finding]) -> Iterator[Finding]:
    """Findings about the files of one artifact: the broken ones, and the kept ones as one."""
    yield from (finding for finding in findings if not finding.kept)
    if kept := [finding for finding in findings if finding.kept]:
        words = "1 file with its sha256" if len(kept) == 1 else f"{len(kept)} files with their sha256"
        yield Finding(kept[0].contract, str(root), True, words, words)


def _opens(kind: str, root: Path, load: Callable[[Path], Any]) -> Iterator[Finding]:
    """Whether today's code reads the artifact as what it promises to be."""
    try:
        fingerprint = load(root).manifest.fingerprint
    except (ContractError, InputError) as error:
        yield _finding(error, contract=kind, artifact=root)
        return
    yield Finding(kind, f"{root} as read", True, fingerprint, fingerprint)


def _pair(upstream: Manifest | None, downstream: Manifest | None, artifact: Path) -> Iterator[Finding]:
    """The contract between two neighbours, where both manifests could be read."""
    if upstream is not None and downstream is not None:
        yield from compare(upstream, downstream, artifact=artifact)


def _readable(root: Path) -> Manifest | None:
    """The manifest of an artifact, where it is whole and states what this walk reads."""
    try:
        manifest = Manifest.load(root)
    except (ContractError, InputError):
        return None
    return None if _unstated(manifest) else manifest


@dataclass(frozen=True)
class _Parts:
    """The manifests of a run that could be read, and what its events tell; None without a run."""

    config: RunConfig | None = None
    tokenizer: Manifest | None = None
    data: Manifest | None = None
    run: Manifest | None = None
    model: Manifest | None = None
    history: History | None = None

    @classmethod
    def of(cls, layout: Layout) -> _Parts:
        config, model, run = None, None, _readable(layout.path)
        with suppress(ContractError, InputError):
            config = read_resolved(layout.resolved)
        if run is not None:
            with suppress(ContractError):
                model = Manifest.from_json(run.facts["model"], artifact=layout.manifest)
        data = layout.data(config) if config is not None else layout.path / "data"
        history = History.of(record for record, _ in read_log(layout.events))
        return cls(config, _readable(layout.tokenizer), _readable(data), run, model, history)


def _run(layout: Layout) -> Iterator[Finding]:
    """A run: tokenizer, data, model, the run itself, its logs, checkpoints and evaluations."""
    if not layout.manifest.exists() and not CheckpointStore(layout.checkpoints).committed():
        raise InputError(f"{layout.path}: expected a run whose training has begun; `jaxlm train {layout.path}` goes on with it")
    parts = _Parts.of(layout)
    tokenizer, data, run = parts.tokenizer, parts.data, parts.run
    try:
        read_resolved(layout.resolved)
    except (ContractError, InputError) as error:
        yield _finding(error, contract="run", artifact=layout.resolved)
    data_path = layout.data(parts.config) if parts.config is not None else layout.path / "data"

    yield from _plain(layout.tokenizer, "tokenizer")
    yield from _opens("tokenizer", layout.tokenizer, Tokenizer.load)
    yield from _plain(data_path, "data")
    yield from _opens("data", data_path, open_shards)
    yield from _plain(layout.path, "run")
    yield from _pair(tokenizer, data, data_path)
    yield from _pair(tokenizer, run, layout.manifest)
    yield from _pair(data, run, layout.manifest)
    if parts.config is not None and run is not None:
        recorded, found = run.facts["config_fingerprint"], config_fingerprint(parts.config)
        yield Finding("run", str(layout.resolved), found == recorded, f"config {recorded}", f"config {found}", COPY)
    if run is not None:
        yield from _model(layout, parts)
        yield from _probes(layout, run)

    store = CheckpointStore(layout.checkpoints)
    for step in store.committed():
        yield from _checkpoint(store, step, parts)
    if parts.config is not None:
        present = {step: _readable(store.path(step)) for step in store.committed()}
        events = [record for record, _ in read_log(layout.events)]
        yield from kept_findings(events, present, keep_last=parts.config.checkpoint.keep_last, where=layout.checkpoints)
    yield from log_findings(layout, store)
    if parts.history is not None:
        yield from _undone(layout, parts.history)
    if run is not None:
        yield from change_findings(layout, run, [record for record, _ in read_log(layout.events)])
    for root in _within(layout.evaluations):
        yield from _evaluation(root, parts, store)
    for root in _within(layout.bundles):
        yield from _bundle(root, parts)
    steps = {store.path(step) for step in store.committed()}
    for path in _within(layout.checkpoints):
        if path not in steps:
            yield _stranger("checkpoint", path)


def _within(folder: Path) -> list[Path]:
    """What lies in a folder of artifacts, without hidden names: those are of writers that were cut off."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def _model(layout: Layout, parts: _Parts) -> Iterator[Finding]:
    where, model = f"{layout.manifest} (model)", parts.model
    if model is None:
        yield Finding("model", where, False, "the manifest of the model", "another text", COPY)
        return
    if parts.config is not None and parts.tokenizer is not None:
        now = model_manifest(parts.config.model, parts.tokenizer).fingerprint
        remedy = "Use the tokenizer and the version of jaxlm that the run was made with."
        yield Finding("model", where, now == model.fingerprint, f"model {model.fingerprint}", f"model {now}", remedy)
    for upstream in (parts.tokenizer, parts.data):
        if upstream is not None:
            yield from compare(upstream, model, artifact=where)


def _probes(layout: Layout, run: Manifest) -> Iterator[Finding]:
    for name, result in sorted(run.facts["probes"].items()):
        yield Finding("probe", f"{layout.manifest} ({name})", result["passed"], result["expected"], result["found"])


def _checkpoint(store: CheckpointStore, step: int, parts: _Parts, *, deep: bool = False) -> Iterator[Finding]:
    root = store.path(step)
    yield from _states(root)
    yield from _files(root, store.verify(step, deep=deep))
    manifest = _readable(root)
    now = parts.run is None or step > first_step(parts.run)
    for parent in (parts.tokenizer, parts.model, *((parts.data, parts.run) if now else ())):
        yield from _pair(parent, manifest, root)
    if manifest is not None and parts.run is not None and not now:
        yield from parent_findings(parts.run, manifest, step, root)
    if manifest is not None and parts.history is not None:
        yield cursor_of(manifest, parts.history, root)


def _undone(layout: Layout, history: History) -> Iterator[Finding]:
    """The telemetry that rollbacks took back is kept, byte by byte."""
    for back in history.rollbacks:
        path = layout.path / back.undone
        found = file_sha256(path) if path.is_file() else "no such file"
        yield Finding("telemetry", str(path), found == back.sha256, back.sha256, found, COPY)


def _evaluation(root: Path, parts: _Parts, store: CheckpointStore | None) -> Iterator[Finding]:
    """An evaluation, with its figures computed again from the scores of its documents; and where it lies in a run, its
    parents; its checkpoint may be one that the run no longer keeps, or that a rollback took back."""
    if not root.is_dir():
        yield _stranger("evaluation", root)
        return
    yield from _plain(root, "evaluation")
    manifest = _readable(root)
    yield from _pair(parts.tokenizer, manifest, root)
    earlier = {change["data"] for change in changes_of(parts.run)} if parts.run is not None else set()
    if manifest is None or manifest.parents.get("data") not in earlier:
        yield from _pair(parts.data, manifest, root)
    removed = {print_ for back in parts.history.rollbacks for print_ in back.removed.values()} if parts.history else set()
    gone = manifest is not None and manifest.parents.get("checkpoint") in removed
    if store is not None and manifest is not None and manifest.facts["step"] in store.committed() and not gone:
        yield from _pair(_readable(store.path(manifest.facts["step"])), manifest, root)
    if manifest is not None:
        yield from recomputed(root, manifest, parts.data)


def _bundle(root: Path, parts: _Parts) -> Iterator[Finding]:
    """A bundle of the flight recorder, with all that lies in it, and the run that it is of, as it is or was."""
    if not root.is_dir():
        yield _stranger("bundle", root)
        return
    yield from _plain(root, "bundle")
    manifest = _readable(root)
    earlier = {change["run"] for change in changes_of(parts.run)} if parts.run is not None else set()
    if manifest is None or manifest.parents.get("run") not in earlier:
        yield from _pair(parts.run, manifest, root)


OPENED: dict[str, Callable[[Path], Any]] = {"tokenizer": Tokenizer.load, "data": open_shards}
