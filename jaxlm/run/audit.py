"""The walk along the chain of artifacts: every contract between two neighbours, every byte of every file.

It opens each artifact with the code that uses it, so that an artifact which is whole on the disk but means something else
to today's code (another encoding of the probe text, another spec tree) is found as well. Nothing here stops at the first
broken contract: `audit` returns all findings, kept and broken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.load import config_fingerprint, read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import MANIFEST, ContractError, Finding, InputError, Manifest, compare
from jaxlm.data import open_shards
from jaxlm.model import model_manifest
from jaxlm.run.layout import Layout
from jaxlm.tokenizer import Tokenizer
from jaxlm.watch import Mark, verify_log


def audit(path: str | os.PathLike[str]) -> list[Finding]:
    """Check the artifact at `path`: a run with all that it holds, or a tokenizer, data, checkpoint or evaluation alone.

    An artifact inside a run is checked against its run as well. Raises InputError where `path` is no artifact.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"{root}: expected an artifact (a run, tokenizer, data, checkpoint or evaluation), found nothing")
    if root.is_file():
        root = root.parent
    layout = Layout(root)
    if layout.manifest.is_file() or not layout.resolved.is_file():
        kind, _ = _manifest(root)
    else:
        kind = "run"
    if kind == "run":
        return list(_run(layout))
    if kind == "checkpoint":
        store = CheckpointStore(root.parent)
        return list(_files(root, store.verify(int(root.name), deep=True)) if root.name.isdigit() else _plain(root))
    opened: dict[str, Callable[[Path], Any]] = {"tokenizer": Tokenizer.load, "data": open_shards}
    return list(_plain(root)) + (list(_opens(kind, root, opened[kind])) if kind in opened else [])


def _manifest(root: Path) -> tuple[str, Manifest | None]:
    """Kind and manifest of an artifact; where the manifest is damaged, the kind is told by its place."""
    try:
        manifest = Manifest.load(root)
    except ContractError:
        known = {"tokenizer": "tokenizer", "data": "data", "checkpoints": "checkpoint", "evaluations": "evaluation"}
        beside = (root / "resolved.json").is_file()
        return "run" if beside else known.get(root.name, known.get(root.parent.name, "manifest")), None
    return manifest.kind, manifest


def _finding(error: ContractError | InputError, *, contract: str, artifact: Path) -> Finding:
    if isinstance(error, ContractError):
        return Finding(error.contract, error.artifact, False, error.expected, error.found, error.remedy)
    return Finding(contract, str(artifact), False, "an artifact that can be read", str(error))


def _plain(root: Path, kind: str | None = None) -> Iterator[Finding]:
    """The manifest against itself, then every file against the manifest."""
    try:
        manifest = Manifest.load(root, kind)
    except (ContractError, InputError) as error:
        yield _finding(error, contract=kind or "manifest", artifact=root)
        return
    yield Finding(manifest.kind, str(root / MANIFEST), True, manifest.fingerprint, manifest.fingerprint)
    yield from _files(root, list(manifest.verify_files(root)))


def _files(root: Path, findings: list[Finding]) -> Iterator[Finding]:
    """Findings about the files of one artifact: the broken ones, and the kept ones as one."""
    yield from (finding for finding in findings if not finding.kept)
    if kept := [finding for finding in findings if finding.kept]:
        words = f"{len(kept)} files with their sha256"
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


def _run(layout: Layout) -> Iterator[Finding]:
    """A run: tokenizer, data, model, the run itself, its logs, checkpoints and evaluations."""
    config = None
    try:
        config = read_resolved(layout.resolved)
    except (ContractError, InputError) as error:
        yield _finding(error, contract="run", artifact=layout.resolved)
    data_path = layout.data(config) if config is not None else layout.path / "data"

    yield from _plain(layout.tokenizer, "tokenizer")
    yield from _opens("tokenizer", layout.tokenizer, Tokenizer.load)
    yield from _plain(data_path, "data")
    yield from _opens("data", data_path, open_shards)
    yield from _plain(layout.path, "run")
    tokenizer, data, run = _readable(layout.tokenizer), _readable(data_path), _readable(layout.path)
    yield from _pair(tokenizer, data, data_path)
    yield from _pair(tokenizer, run, layout.manifest)
    yield from _pair(data, run, layout.manifest)
    if config is not None and run is not None:
        recorded, found = run.facts["config_fingerprint"], config_fingerprint(config)
        yield Finding("run", str(layout.resolved), found == recorded, f"config {recorded}", f"config {found}")
    model = None
    if run is not None:
        model = Manifest.from_json(run.facts["model"], artifact=layout.manifest)
        yield from _model(layout, config, model, tokenizer, data)
        yield from _probes(layout, run)

    store = CheckpointStore(layout.checkpoints)
    yield from _checkpoints(layout, store, (tokenizer, data, model, run))
    yield from _logs(layout, store)
    yield from _evaluations(layout, store, tokenizer, data)


def _readable(root: Path) -> Manifest | None:
    try:
        return Manifest.load(root)
    except (ContractError, InputError):
        return None


def _model(
    layout: Layout, config: RunConfig | None, model: Manifest, tokenizer: Manifest | None, data: Manifest | None
) -> Iterator[Finding]:
    where = f"{layout.manifest} (model)"
    if config is not None and tokenizer is not None:
        now = model_manifest(config.model, tokenizer).fingerprint
        remedy = "Use the tokenizer and the version of jaxlm that the run was made with."
        yield Finding("model", where, now == model.fingerprint, f"model {model.fingerprint}", f"model {now}", remedy)
    for upstream in (tokenizer, data):
        if upstream is not None:
            yield from compare(upstream, model, artifact=where)


def _probes(layout: Layout, run: Manifest) -> Iterator[Finding]:
    for name, result in sorted(run.facts["probes"].items()):
        yield Finding("probe", f"{layout.manifest} ({name})", result["passed"], result["expected"], result["found"])


def _checkpoints(layout: Layout, store: CheckpointStore, upstream: tuple[Manifest | None, ...]) -> Iterator[Finding]:
    for step in store.committed():
        yield from _files(store.path(step), store.verify(step))
        manifest = _readable(store.path(step))
        for parent in upstream:
            yield from _pair(parent, manifest, store.path(step))


def _logs(layout: Layout, store: CheckpointStore) -> Iterator[Finding]:
    """Both logs continue their chains, and the telemetry holds the steps that the newest checkpoint has seen."""
    busy = layout.in_use()
    latest = store.latest()
    mark = None
    if latest is not None:
        mark = Mark(**store.manifest(latest).facts["telemetry"])
    for path, at_least in ((layout.telemetry, mark), (layout.events, None)):
        if path.is_file() or at_least is not None:
            yield verify_log(path, contract="telemetry", at_least=at_least, open_end=busy)


def _evaluations(
    layout: Layout, store: CheckpointStore, tokenizer: Manifest | None, data: Manifest | None
) -> Iterator[Finding]:
    if not layout.evaluations.is_dir():
        return
    for root in sorted(p for p in layout.evaluations.iterdir() if p.is_dir() and not p.name.startswith(".")):
        yield from _plain(root, "evaluation")
        manifest = _readable(root)
        yield from _pair(tokenizer, manifest, root)
        yield from _pair(data, manifest, root)
        if manifest is not None and manifest.facts["step"] in store.committed():
            yield from _pair(_readable(store.path(manifest.facts["step"])), manifest, root)
