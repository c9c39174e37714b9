"""The flight recorder: at an alarm, what is needed to compute the step again.

RUN/bundles/00000123/ is an artifact of its own: the batch as it was fed, the telemetry of the steps before, the alarms, and,
where it still exists, the state that the step began from (a checkpoint below it). A step whose update was applied has donated
that state; then the bundle names the step of the newest checkpoint, from which the steps between are computed again.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.checkpoint import CheckpointStore
from jaxlm.contract import ContractError, Manifest, new_artifact, record_files
from jaxlm.data import Batch

KIND = "bundle"
BATCH, RING, STATE = "batch.npz", "ring.jsonl", "state"


class Recorder:
    """The last steps of a run, and its bundles.

    folder: where bundles go. ring: steps kept. keep: bundles of a run, at most; further alarms are logged without one, so that
    a run that alarms at every step does not fill the disk.
    """

    def __init__(self, folder: Path, *, ring: int, keep: int):
        self.folder, self.keep = folder, keep
        self._ring: deque[Mapping[str, Any]] = deque(maxlen=ring)

    def step(self, record: Mapping[str, Any]) -> None:
        """Remember the telemetry record of a step."""
        self._ring.append(record)

    def forget(self, *, after: int) -> None:
        """Drop the records of the steps after `after`: they were taken back."""
        self._ring = deque((record for record in self._ring if record["step"] <= after), maxlen=self._ring.maxlen)

    def path(self, step: int) -> Path:
        """The directory of the bundle of step number `step`, from 1, whether or not it exists."""
        return self.folder / f"{step:08d}"

    def bundle(
        self,
        step: int,
        alarms: Iterable[Mapping[str, Any]],
        *,
        batch: Batch,
        parents: Mapping[str, str],
        state: Any = None,
        checkpoint: int | None = None,
    ) -> Path | None:
        """Write the bundle of step number `step`, and return its directory; None where it exists or there are enough.

        batch: as it was fed, NumPy [B, T]. state: from which the step began, or None. checkpoint: the newest step saved before
        it, or None. Raises OSError, which names the file, where it cannot be written; then nothing of it is left.
        """
        path = self.path(step)
        if path.exists() or len(bundles(self.folder)) >= self.keep:
            return None
        with new_artifact(path) as temporary:
            with open(temporary / BATCH, "wb") as file:
                np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in batch._asdict().items()})
            lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in self._ring)
            (temporary / RING).write_text(lines)
            saved = state is not None and _saved(state, temporary / STATE, step, parents)
            facts = {"step": step, "alarms": list(alarms), "state": saved, "checkpoint": checkpoint}
            Manifest(KIND, facts, {"run": parents["run"]}, record_files(temporary)).save(temporary)
        return path


def _saved(state: Any, folder: Path, step: int, parents: Mapping[str, str]) -> bool:
    """Save the state that step number `step` began from; False for one that is not finite, which no checkpoint holds."""
    try:
        with CheckpointStore(folder, asynchronous=False) as store:
            store.save(state, step - 1, facts={"data_cursor": step - 1}, parents=parents)
    except ContractError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def bundles(folder: Path) -> dict[int, Path]:
    """The bundles below a folder, by step, ascending."""
    if not folder.is_dir():
        return {}
    return {int(path.name): path for path in sorted(folder.iterdir()) if path.name.isdigit()}


def read_batch(bundle: Path) -> Batch:
    """The batch of a bundle, NumPy. Raises ContractError where the bundle is damaged, InputError where it is none."""
    Manifest.load(bundle, KIND).require_files(bundle)
    with np.load(bundle / BATCH, allow_pickle=False) as arrays:
        return Batch(**{name: arrays[name] for name in Batch._fields})


def read_state(bundle: Path, like: Any) -> Any:
    """The state that the step of a bundle began from, into a tree like `like`; None where the bundle holds none."""
    manifest = Manifest.load(bundle, KIND)
    if not manifest.facts["state"]:
        return None
    manifest.require_files(bundle)
    with CheckpointStore(bundle / STATE) as store:
        return store.restore(like)[0]
