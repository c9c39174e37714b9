"""Checkpoints of a run: saved in the background, committed last, compared before they are read.

A save writes into `DIRECTORY/.00000400.<hex>.tmp`: the leaves (`state/`, by orbax), read back and compared with what was in
memory, then `manifest.json` with the digest of every file and leaf; then the directory is renamed to `DIRECTORY/00000400`.
So a directory with a step's name is a finished checkpoint, whatever moment the process was killed at, and which steps are
durable is read from the disk alone.

A restore compares the manifest with the tree that it shall fill before it reads a byte of data, then every file with its
digest, then every leaf with its own. Damage raises ContractError; an older checkpoint is taken only when asked for.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import re
import shutil
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jaxlm.checkpoint.arrays import leaf_of_file, read_arrays, write_arrays
from jaxlm.checkpoint.leaves import HostLeaf, LeafRecord, fill, host_leaves, leaf_sha256, nonfinite_leaf, require_match
from jaxlm.checkpoint.retention import steps_to_keep
from jaxlm.contract import MANIFEST, ContractError, Finding, InputError, Manifest, canonical_json, record_files, sync_directory

KIND = "checkpoint"
STATE = "state"  # the directory of the leaves within a checkpoint
RESERVED = ("step", "metric", "leaves")  # facts that the store states itself
TEMPORARY = re.compile(r"\.\d{8,}\.[0-9a-f]{8}\.tmp")
_COPY = "Restore it from a copy, or resume from another checkpoint."


class SaveError(Exception):
    """A checkpoint was not saved. step: which; durable: the newest step that is on the disk, or None; cause: the error."""

    def __init__(self, path: Path, step: int, cause: BaseException, *, durable: int | None, bytes_needed: int):
        self.path, self.step, self.durable, self.cause = path, step, durable, cause
        try:
            free = f"{shutil.disk_usage(path.parent).free} bytes are free there"
        except OSError as error:
            free = str(error)
        super().__init__(
            f"checkpoint {path} was not saved: expected to write {bytes_needed} bytes, found {type(cause).__name__}: {cause}. "
            f"Last durable step: {'none' if durable is None else durable}. Nothing of the failed save is left. "
            f"Free space on the disk ({free}), lower --checkpoint.keep-last, or check the permissions; then resume the run."
        )


@dataclass
class _Save:
    """One save: what it writes, and how it ended."""

    step: int
    leaves: dict[str, HostLeaf]
    facts: dict[str, Any]
    parents: dict[str, str]
    provenance: dict[str, Any]
    thread: threading.Thread | None = None
    manifest: Manifest | None = None
    error: SaveError | None = None


class CheckpointStore:
    """The checkpoints below one directory (`RUN/checkpoints`).

    keep_last, keep_best: how many of the newest and of the lowest metric stay. asynchronous: `save` returns as soon as the
    state is copied to host memory. clean: remove what killed saves left behind; only for the holder of the run's lock.

    One process saves at a time; any number may read. Close it, or use it as a context manager: an asynchronous save that is
    under way when the interpreter ends is lost (never half-written).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        asynchronous: bool = True,
        clean: bool = False,
    ):
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"expected keep_last >= 1 and keep_best >= 0, found {keep_last} and {keep_best}")
        self.directory = Path(directory)
        self.keep_last, self.keep_best, self.asynchronous = keep_last, keep_best, asynchronous
        self._save: _Save | None = None
        if clean and self.directory.is_dir():
            for path in self.directory.iterdir():
                if TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path)

    # ---- what is on the disk -------------------------------------------------------------------------------------

    def path(self, step: int) -> Path:
        """The directory of a step, whether or not it exists."""
        return self.directory / f"{operator.index(step):08d}"

    def committed(self) -> list[int]:
        """The steps that were committed, ascending: every directory with a step's name, even if it was damaged since."""
        if not self.directory.is_dir():
            return []
        names = [p.name for p in self.directory.iterdir() if re.fullmatch(r"\d{8,}", p.name, re.ASCII) and p.is_dir()]
        return sorted(int(name) for name in names if name == f"{int(name):08d}")

    def steps(self) -> list[int]:
        """The durable steps, ascending: those with a readable manifest. `verify` says whether their files are whole."""
        return [step for step in self.committed() if self._readable(step) is not None]

    def latest(self) -> int | None:
        """The newest durable step, or None."""
        return next((step for step in reversed(self.committed()) if self._readable(step) is not None), None)

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step. Raises ContractError where it is missing, damaged, or that of another step."""
        path = self.path(step)
        try:
            manifest = Manifest.load(path, KIND)
        except (InputError, OSError) as error:
            found = "none" if isinstance(error, InputError) else error
            raise ContractError(KIND, artifact=path / MANIFEST, expected="a manifest", found=found, remedy=_COPY) from None
        if manifest.facts.get("step") != step:
            found = f"step {manifest.facts.get('step')}"
            raise ContractError(KIND, artifact=path, expected=f"step {step}", found=found, remedy=_COPY)
        return manifest

    def _readable(self, step: int) -> Manifest | None:
        try:
            return self.manifest(step)
        except ContractError:
            return None

    def verify(self, step: int, *, deep: bool = False) -> list[Finding]:
        """Compare a checkpoint with its manifest: every file, and with `deep` every leaf as orbax reads it. Does not raise.

        A finding's artifact is the path of the file, with the leaf that it belongs to.
        """
        try:
            manifest = self.manifest(step)
        except ContractError as error:
            return [Finding(KIND, error.artifact, False, error.expected, error.found, error.remedy)]
        findings = self._verify_files(step, manifest)
        if deep and all(finding.kept for finding in findings):
            findings += self._verify_leaves(self.path(step), _records(manifest))[1]
        return findings

    def _verify_files(self, step: int, manifest: Manifest) -> list[Finding]:
        root, leaves = self.path(step), manifest.facts["leaves"]
        findings = []
        for finding in manifest.verify_files(root):
            name = Path(finding.artifact).relative_to(root).as_posix()
            findings.append(dataclasses.replace(finding, artifact=_artifact(root, name, leaves), remedy=_COPY))
        for name in sorted(_files_below(root) - manifest.files.keys() - {MANIFEST}):
            remedy = "Remove it, if nothing needs it: nothing of this project made it."
            findings.append(Finding(KIND, _artifact(root, name, leaves), False, "no such file", "a file", remedy))
        return findings

    def _verify_leaves(self, root: Path, records: Mapping[str, LeafRecord]) -> tuple[dict[str, np.ndarray], list[Finding]]:
        """Read every leaf of the checkpoint at `root` and compare it with its record."""
        filled = {name: record for name, record in records.items() if math.prod(record.shape)}
        try:
            data = read_arrays(root / STATE, filled)
        except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:  # what orbax and tensorstore raise
            return {}, [Finding(KIND, str(root / STATE), False, "leaves that orbax can read", error, _COPY)]
        findings = []
        for name, record in records.items():
            if name not in filled:
                data[name] = np.zeros(record.shape, _stored_dtype(record))
            array, artifact = data[name], f"{root} (leaf {name})"
            found = f"{array.dtype.name}{list(array.shape)}"
            # The digest covers the recorded shape and dtype; that orbax gave this shape and dtype is checked beside it.
            trailing = array.shape[len(record.shape) :] if record.dtype.startswith("key<") else ()
            if array.dtype != _stored_dtype(record) or array.shape != (*record.shape, *trailing):
                findings.append(Finding(KIND, artifact, False, f"{record.dtype}{list(record.shape)}", found, _COPY))
                continue
            digest = leaf_sha256(array, record.shape, record.dtype)
            kept = digest == record.sha256
            findings.append(Finding(KIND, artifact, kept, f"sha256 {record.sha256}", f"sha256 {digest}", "" if kept else _COPY))
        return data, findings

    # ---- saving --------------------------------------------------------------------------------------------------

    def save(
        self,
        state: Any,
        step: int,
        *,
        facts: Mapping[str, Any],
        parents: Mapping[str, str],
        metric: float | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a pytree of arrays as the checkpoint of `step`. Its buffers may be donated as soon as this returns.

        facts: what the next layer relies on; `step`, `metric` and `leaves` are added. parents: kind -> fingerprint.
        metric: by which `keep_best` chooses, lower is better. provenance: recorded, outside the fingerprint.

        Waits for a save under way. A step that is durable with equal leaves and parents is left as it is; if it differs,
        ContractError is raised; if it is damaged, it is replaced, with a warning. Raises ContractError for a state that is
        not finite, naming the leaf; ValueError for a bad argument; SaveError where this save (`asynchronous=False`) or
        the one before it failed.
        """
        self.wait()
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"expected a step >= 0, found {step}")
        if metric is not None and not math.isfinite(metric := float(metric)):
            raise ValueError(f"expected a finite metric or None, found {metric}")
        if taken := [name for name in RESERVED if name in facts]:
            raise ValueError(f"expected facts other than {', '.join(RESERVED)}, found {', '.join(taken)}")
        canonical_json([facts, parents, provenance or {}])  # what cannot be written is refused here, not in the background

        leaves = host_leaves(state)
        if bad := nonfinite_leaf(leaves):
            raise ContractError(
                KIND,
                artifact=f"{self.path(step)} (leaf {bad.path})",
                expected="a state of finite numbers",
                found=f"{bad.count} of {bad.size} values of {bad.path} NaN or infinite",
                remedy="Nothing was saved. Resume from an earlier checkpoint, and look at what led to the non-finite values.",
            )
        job = _Save(step, leaves, {**facts, "step": step, "metric": metric}, dict(parents), dict(provenance or {}))
        if self.path(step).exists() and self._settled(job):
            return
        if self.asynchronous:
            job.thread = threading.Thread(target=self._run, args=(job,), name=f"save-{step}")
            self._save = job
            job.thread.start()
        else:
            self._save = job
            self._run(job)
            self.wait()

    def poll(self) -> Manifest | None:
        """The manifest of a save that ended since the last `poll` or `wait`, or None. Raises SaveError if it failed."""
        if self._save is None or (self._save.thread is not None and self._save.thread.is_alive()):
            return None
        return self.wait()

    def wait(self) -> Manifest | None:
        """Wait for the save under way, if any, and return its manifest. Raises SaveError if it failed."""
        if self._save is None:
            return None
        if self._save.thread is not None:
            self._save.thread.join()
        job, self._save = self._save, None
        if job.error is not None:
            raise job.error
        return job.manifest

    def close(self) -> None:
        """Wait for the save under way. Raises SaveError if it failed."""
        self.wait()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except SaveError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # neither of the two hides the other

    def _settled(self, job: _Save) -> bool:
        """Whether the directory of this step already holds this state. Raises ContractError if it holds another, whole one."""
        broken = next((finding for finding in self.verify(job.step) if not finding.kept), None)
        if broken is not None:
            warnings.warn(f"replacing a damaged checkpoint: {broken.error()}", stacklevel=3)
            return False
        manifest = self.manifest(job.step)
        records = {name: leaf.record() for name, leaf in job.leaves.items()}
        held = {f"leaf {name}": record for name, record in _records(manifest).items()} | _parents(manifest.parents)
        given = {f"leaf {name}": record for name, record in records.items()} | _parents(job.parents)
        for name in sorted(held.keys() | given.keys()):
            if held.get(name) != given.get(name):
                raise ContractError(
                    KIND,
                    artifact=f"{self.path(job.step)} ({name})",
                    expected=f"what is durable already, {held.get(name)}",
                    found=f"another state for the same step, {given.get(name)}",
                    remedy="Save to another run directory, or remove this checkpoint.",
                )
        return True

    def _run(self, job: _Save) -> None:
        """The whole of a save, in its thread: write, read back, record, commit, forget the old ones."""
        final = self.path(job.step)
        temporary = self._hidden(job.step)
        size = sum(leaf.data.nbytes for leaf in job.leaves.values())
        try:
            temporary.mkdir(parents=True)
            records = {name: leaf.record() for name, leaf in job.leaves.items()}
            write_arrays(temporary / STATE, {name: leaf.data for name, leaf in job.leaves.items()})
            job.leaves = {}
            # Orbax may cast or drop without a word: what is committed has been read back.
            for finding in self._verify_leaves(temporary, records)[1]:
                if not finding.kept:
                    raise finding.error()
            _sync_below(temporary)
            facts = job.facts | {"leaves": {name: dataclasses.asdict(record) for name, record in records.items()}}
            manifest = Manifest(KIND, facts, job.parents, record_files(temporary), job.provenance)
            manifest.save(temporary)
            if final.exists():  # a damaged one: `save` has said so
                self._remove(job.step)
            os.replace(temporary, final)
            sync_directory(self.directory)
            job.manifest = manifest
            self._forget(job.step)
        except Exception as error:  # whatever it was, it reaches the caller as SaveError
            shutil.rmtree(temporary, ignore_errors=True)
            job.error = SaveError(final, job.step, error, durable=self.latest(), bytes_needed=size)
            job.error.__cause__ = error
            if job.thread is not None and not threading.main_thread().is_alive():
                raise job.error from error  # the interpreter is ending: nobody will ask, so print it

    def _forget(self, saved: int) -> None:
        """Remove the checkpoints that are neither new nor good. A damaged one is left: it is evidence, and counts as none."""
        manifests = {step: manifest for step in self.committed() if (manifest := self._readable(step)) is not None}
        metrics = {step: manifest.facts["metric"] for step, manifest in manifests.items()}
        kept = steps_to_keep(metrics, keep_last=self.keep_last, keep_best=self.keep_best, always=saved)
        for step in metrics.keys() - kept:
            self._remove(step)

    def _remove(self, step: int) -> None:
        hidden = self._hidden(step)
        os.replace(self.path(step), hidden)  # a kill in between leaves a hidden directory, never half a checkpoint
        shutil.rmtree(hidden)

    def _hidden(self, step: int) -> Path:
        return self.directory / f".{self.path(step).name}.{uuid.uuid4().hex[:8]}.tmp"

    # ---- restoring -----------------------------------------------------------------------------------------------

    def restore(
        self, like: Any, step: int | None = None, *, allow_older: bool = False, expect: Mapping[str, Any] | None = None
    ) -> tuple[Any, Manifest]:
        """Restore a step (None: the newest) into a tree of the structure of `like`, bitwise, and return it with its manifest.

        like: a pytree of `jax.ShapeDtypeStruct` (with a sharding, if it has one), jax arrays or NumPy arrays.
        expect: facts, or kinds of parents, with the value that they must have.
        allow_older: take the next older checkpoint where this one is damaged. Each one passed over is warned about and
        recorded in the returned manifest as `provenance["refused"]`, a list of `{"step", "error"}`.

        Raises InputError where there is no such checkpoint. Raises ContractError where a leaf is missing, extra, or of
        another shape or dtype, or a fact differs (before any data is read, and whatever `allow_older` says), and where any
        file is changed, truncated, missing or extra.
        """
        self.wait()
        steps = self.committed()
        if not steps or (step is not None and operator.index(step) not in steps):
            found = f"steps {', '.join(map(str, steps))}" if steps else "none"
            wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
            raise InputError(f"{self.directory}: expected {wanted}, found {found}; train first, or name another step")
        newest = steps[-1] if step is None else operator.index(step)
        refused: list[dict[str, Any]] = []
        for candidate in [step for step in reversed(steps) if step <= newest]:
            try:
                manifest = self.manifest(candidate)
            except ContractError as error:
                damage = error
            else:
                path, records = self.path(candidate), _records(manifest)
                _require_facts(manifest, expect or {}, artifact=path)
                require_match(records, like, artifact=path)
                broken = next((finding for finding in self._verify_files(candidate, manifest) if not finding.kept), None)
                if broken is None:
                    data, findings = self._verify_leaves(path, records)
                    broken = next((finding for finding in findings if not finding.kept), None)
                if broken is None:
                    note = {"refused": refused} if refused else {}
                    provenance = {**manifest.provenance, **note}
                    return fill(like, data), dataclasses.replace(manifest, provenance=provenance)
                damage = broken.error()
            if not allow_older:
                raise self._with_older(damage, candidate, steps) from None
            warnings.warn(f"step {candidate} is damaged and passed over: {damage}", stacklevel=2)
            refused.append({"step": candidate, "error": str(damage)})
        raise ContractError(
            KIND,
            artifact=self.directory,
            expected="a checkpoint that is whole",
            found="; ".join(note["error"] for note in refused),
            remedy=_COPY,
        )

    def _with_older(self, damage: ContractError, step: int, steps: list[int]) -> ContractError:
        """`damage` with the older checkpoint that `--allow-older` would take."""
        older = (old for old in reversed(steps) if old < step)
        whole = next((old for old in older if all(finding.kept for finding in self.verify(old))), None)
        remedy = f"`--allow-older` takes step {whole}" if whole is not None else "No older checkpoint is whole"
        return ContractError(
            KIND, artifact=damage.artifact, expected=damage.expected, found=damage.found, remedy=f"{remedy}. {damage.remedy}"
        )


def _records(manifest: Manifest) -> dict[str, LeafRecord]:
    return {name: LeafRecord.from_json(body) for name, body in manifest.facts["leaves"].items()}


def _parents(parents: Mapping[str, str]) -> dict[str, Any]:
    return {f"parent {kind}": fingerprint for kind, fingerprint in parents.items()}


def _stored_dtype(record: LeafRecord) -> np.dtype:
    """The dtype of a leaf's bytes: its own, or that of the key data of PRNG keys."""
    import ml_dtypes  # noqa: F401  registers bfloat16 and its kin with np.dtype

    return np.dtype(np.uint32 if record.dtype.startswith("key<") else record.dtype)


def _artifact(root: Path, name: str, leaves: Mapping[str, Any]) -> str:
    leaf = leaf_of_file(name, leaves, below=STATE)
    return f"{root / name} (leaf {leaf})" if leaf is not None else str(root / name)


def _files_below(root: Path) -> set[str]:
    """Everything below `root` that is no directory, links included, as `/`-joined relative paths."""
    return {Path(folder, name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names}


def _sync_below(root: Path) -> None:
    """Flush every file and directory below `root` to the disk, so that the rename that commits it comes last there too."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync_directory(Path(folder, name))  # fsync needs no more than a descriptor
        sync_directory(folder)


def _require_facts(manifest: Manifest, expect: Mapping[str, Any], *, artifact: Path) -> None:
    held = {**manifest.facts, **manifest.parents}
    for name, value in expect.items():
        if name not in held or canonical_json(held[name]) != canonical_json(value):
            found = f"{name} {held[name]!r}" if name in held else f"no fact or parent named {name}"
            remedy = "Restore with what it was saved with, or start a new run."
            raise ContractError(KIND, artifact=artifact, expected=f"{name} {value!r}", found=found, remedy=remedy)
