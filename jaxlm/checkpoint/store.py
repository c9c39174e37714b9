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
import uuid
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxlm.checkpoint.leaves import LeafRecord, fill, host_leaves, nonfinite_leaf, require_match
from jaxlm.checkpoint.retention import require_kept, steps_to_keep
from jaxlm.checkpoint.saving import Save, SaveError
from jaxlm.checkpoint.together import JointSave, nonfinite_anywhere, shared_leaves
from jaxlm.checkpoint.verifying import COPY, KIND, read_leaves, records_of, require_facts, verify_files
from jaxlm.contract import MANIFEST, ContractError, Finding, InputError, Manifest, canonical_json, sync_directory
from jaxlm.parallel import processes

RESERVED = ("step", "metric", "leaves")  # facts that the store states itself
TEMPORARY = re.compile(r"\.\d{8,}\.[0-9a-f]{8}\.tmp")


class CheckpointStore:
    """The checkpoints below one directory (`RUN/checkpoints`).

    keep_last, keep_best: how many of the newest and of the lowest metric stay. asynchronous: `save` returns as soon as the
    state is copied to host memory. clean: remove what killed saves left behind; only for the holder of the run's lock.

    One process saves at a time, or all processes of a cluster together; any number may read. Close it, or use it as a context
    manager: an asynchronous save that is under way when the interpreter ends is lost (never half-written).
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
        self._save: Save | JointSave | None = None
        self._future: Future[Manifest | None] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        if clean and processes.primary() and self.directory.is_dir():
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
            raise ContractError(KIND, artifact=path / MANIFEST, expected="a manifest", found=found, remedy=COPY) from None
        if manifest.facts.get("step") != step:
            found = f"step {manifest.facts.get('step')}"
            raise ContractError(KIND, artifact=path, expected=f"step {step}", found=found, remedy=COPY)
        if "leaves" not in manifest.facts:
            raise ContractError(KIND, artifact=path, expected="the fact 'leaves'", found="none", remedy=COPY)
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
        findings = verify_files(self.path(step), manifest)
        if deep and all(finding.kept for finding in findings):
            findings += read_leaves(self.path(step), records_of(manifest))[1]
        return findings

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
        norms: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a pytree of arrays as the checkpoint of `step`. Its buffers may be donated as soon as this returns.

        facts: what the next layer relies on; `step`, `metric` and `leaves` are added. parents: kind -> fingerprint.
        metric: by which `keep_best` chooses, lower is better. provenance: recorded, outside the fingerprint.
        norms: what leaves have to have on the disk, by name, before the save is committed (`require_norms`); recorded nowhere.

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

        about = {**facts, "step": step, "metric": metric}, dict(parents), dict(provenance or {}), dict(norms or {})
        job: Save | JointSave
        if processes.several():
            shared = shared_leaves(state)
            job, bad = JointSave(step, shared, *about), nonfinite_anywhere(shared)
        else:
            leaves = host_leaves(state)
            job, bad = Save(step, leaves, *about), nonfinite_leaf(leaves)
        if bad:
            raise ContractError(
                KIND,
                artifact=f"{self.path(step)} (leaf {bad.path})",
                expected="a state of finite numbers",
                found=f"{bad.count} of {bad.size} values of {bad.path} NaN or infinite",
                remedy="Nothing was saved. Resume from an earlier checkpoint, and look at what led to the non-finite values.",
            )
        if isinstance(job, Save) and self.path(step).exists():
            records = {name: leaf.record() for name, leaf in job.leaves.items()}
            if self._settled(step, records, job.parents):
                return
        self._save, self._future = job, self._writer.submit(self._commit, job)
        if not self.asynchronous:
            self.wait()

    def poll(self) -> Manifest | None:
        """The manifest of a save that ended since the last `poll` or `wait`, or None. Raises SaveError if it failed."""
        return self.wait() if self._future is not None and self._future.done() else None

    def wait(self) -> Manifest | None:
        """Wait for the save under way, if any, and return its manifest (None in a process of several other than the first).

        Raises SaveError if it failed, ContractError where it was saved, and others than should were to stay beside it.
        """
        if self._future is None or self._save is None:
            return None
        (job, self._save), (future, self._future) = (self._save, None), (self._future, None)
        error = future.exception()
        if isinstance(error, ContractError) and self.path(job.step).exists():
            raise error
        if error is not None:
            raise SaveError(self.path(job.step), job.step, error, durable=self.latest(), bytes_needed=job.bytes) from error
        return future.result()

    def close(self) -> None:
        """Wait for the save under way. Raises SaveError if it failed."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except SaveError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # neither of the two hides the other

    def _settled(self, step: int, records: Mapping[str, LeafRecord], parents: Mapping[str, str]) -> bool:
        """Whether the directory of this step already holds this state. Raises ContractError if it holds another, whole one."""
        broken = next((finding for finding in self.verify(step) if not finding.kept), None)
        if broken is not None:
            warnings.warn(f"replacing a damaged checkpoint: {broken.error()}", stacklevel=3)
            return False
        manifest = self.manifest(step)
        held = {f"leaf {name}": record for name, record in records_of(manifest).items()} | {
            f"parent {kind}": parent for kind, parent in manifest.parents.items()
        }
        given = {f"leaf {name}": record for name, record in records.items()} | {
            f"parent {kind}": parent for kind, parent in parents.items()
        }
        for name in sorted(held.keys() | given.keys()):
            if held.get(name) != given.get(name):
                raise ContractError(
                    KIND,
                    artifact=f"{self.path(step)} ({name})",
                    expected=f"what is durable already, {held.get(name)}",
                    found=f"another state for the same step, {given.get(name)}",
                    remedy="Save to another run directory, or remove this checkpoint.",
                )
        return True

    def _commit(self, job: Save | JointSave) -> Manifest | None:
        """The whole of a save, in its thread: write, rename, forget the old ones."""
        temporary = self._hidden(job.step)
        if isinstance(job, JointSave):
            return job.commit(temporary, self._settle)
        manifest = job.write(temporary)
        self._finish(job.step, temporary)
        return manifest

    def _settle(self, manifest: Manifest, temporary: Path) -> None:
        """Finish a joint save, of which the digests are known only now; a step that is durable already is left as it is."""
        step = manifest.facts["step"]
        if self.path(step).exists() and self._settled(step, records_of(manifest), manifest.parents):
            shutil.rmtree(temporary)
        else:
            self._finish(step, temporary)

    def _finish(self, step: int, temporary: Path) -> None:
        if self.path(step).exists():  # a damaged one: `_settled` has said so
            self._remove(step)
        os.replace(temporary, self.path(step))
        sync_directory(self.directory)
        self._forget(step)

    def _forget(self, saved: int) -> None:
        """Remove the checkpoints that are neither new nor good. A damaged one is left: it is evidence, and counts as none."""
        manifests = {step: manifest for step in self.committed() if (manifest := self._readable(step)) is not None}
        metrics = {step: manifest.facts["metric"] for step, manifest in manifests.items()}
        rule = {"keep_last": self.keep_last, "keep_best": self.keep_best, "always": saved}
        kept = steps_to_keep(metrics, **rule)
        require_kept(metrics, kept, **rule, artifact=self.directory)
        for step in metrics.keys() - kept:
            self._remove(step)

    def remove(self, step: int) -> None:
        """Remove a committed step for good. Only for the holder of the run's lock; waits for a save under way."""
        self.wait()
        self._remove(step)
        sync_directory(self.directory)

    def _remove(self, step: int) -> None:
        hidden = self._hidden(step)
        os.replace(self.path(step), hidden)  # a kill in between leaves a hidden directory, never half a checkpoint
        shutil.rmtree(hidden)

    def _hidden(self, step: int) -> Path:
        return self.directory / f".{self.path(step).name}.{uuid.uuid4().hex[:8]}.tmp"

    # ---- restoring -----------------------------------------------------------------------------------------------

    def restore(
        self,
        like: Any,
        step: int | None = None,
        *,
        below: str = "",
        allow_older: bool = False,
        expect: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
    ) -> tuple[Any, Manifest]:
        """Restore a step (None: the newest) into a tree of the structure of `like`, bitwise, and return it with its manifest.

        like: a pytree of `jax.ShapeDtypeStruct` (with a sharding, if it has one), jax arrays or NumPy arrays.
        below: restore only the leaves whose names begin with it (`params`), into a `like` of that part alone.
        expect: facts, or kinds of parents, with the value that they must have; or what gives them for a step.
        allow_older: take the next older checkpoint where this one is damaged. Each one passed over is warned about and
        recorded in the returned manifest as `provenance["refused"]`, a list of `{"step", "error"}`.
        In a cluster every process reads the leaves whole, in host memory, and keeps what its devices hold.

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
                path, prefix = self.path(candidate), f"{below}/" if below else ""
                records = {name: leaf for name, leaf in records_of(manifest).items() if name.startswith(prefix)}
                require_facts(manifest, expect(candidate) if callable(expect) else expect or {}, artifact=path)
                require_match({name.removeprefix(prefix): leaf for name, leaf in records.items()}, like, artifact=path)
                broken = next((finding for finding in verify_files(path, manifest) if not finding.kept), None)
                if broken is None:
                    data, findings = read_leaves(path, records)
                    broken = next((finding for finding in findings if not finding.kept), None)
                if broken is None:
                    note = {"refused": refused} if refused else {}
                    provenance = {**manifest.provenance, **note}
                    named = {name.removeprefix(prefix): array for name, array in data.items()}
                    return fill(like, named), dataclasses.replace(manifest, provenance=provenance)
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
            remedy=COPY,
        )

    def _with_older(self, damage: ContractError, step: int, steps: list[int]) -> ContractError:
        """`damage` with the older checkpoint that `--allow-older`, or `--step`, would take."""
        older = (old for old in reversed(steps) if old < step)
        whole = next((old for old in older if all(finding.kept for finding in self.verify(old))), None)
        run = self.directory.parent
        remedy = f"`jaxlm train {run} --allow-older` takes step {whole}, `--step {whole}` elsewhere"
        remedy = remedy if whole is not None else "No older checkpoint is whole"
        return ContractError(
            KIND, artifact=damage.artifact, expected=damage.expected, found=damage.found, remedy=f"{remedy}. {damage.remedy}"
        )
