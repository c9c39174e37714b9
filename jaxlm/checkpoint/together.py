"""One save of a state that lies on the devices of several processes: each writes its own shards, process 0 commits.

Orbax writes the leaves together, below a directory that all processes see: a leaf that is whole everywhere is written by
process 0, of the others each process writes the shards that are its own, a chunk each (so equal arrays give equal files only
under equal shardings). The digests of the shards, taken in memory before they are written, go to process 0. It reads every
leaf back, compares each region with the digest of its shard, records the digest of the whole leaf, and writes the manifest
when all others have finished. So the manifest says the same of a state whatever it was laid out on.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoint.arrays import complete_arrays, read_arrays, write_shards
from jaxlm.checkpoint.leaves import LeafRecord, NonFinite, is_key, leaf_sha256, shape_dtype
from jaxlm.checkpoint.norms import require_norms
from jaxlm.checkpoint.saving import BLOCK
from jaxlm.checkpoint.verifying import COPY, KIND, STATE, stored_dtype
from jaxlm.contract import ContractError, Manifest, record_files, sync_below
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import processes


class SharedLeaf(NamedTuple):
    """One leaf on the devices of all processes. array: a copy that the save owns; of PRNG keys their key data."""

    shape: tuple[int, ...]
    dtype: str
    array: jax.Array


def shared_leaves(tree: Any) -> dict[str, SharedLeaf]:
    """Copies of the leaves of `tree`, where they lie; its buffers may be donated at once. All processes call this."""
    leaves = {}
    for name, leaf in named_leaves(tree).items():
        shape, dtype = shape_dtype(name, leaf)
        data = jax.random.key_data(leaf) if is_key(leaf.dtype) else leaf
        leaves[name] = SharedLeaf(shape, dtype, jnp.copy(data))
    return leaves


def nonfinite_anywhere(leaves: dict[str, SharedLeaf]) -> NonFinite | None:
    """The first leaf that is not finite, counted on the devices: every process finds the same. All processes call this."""
    inexact = {name: leaf.array for name, leaf in leaves.items() if jnp.issubdtype(leaf.array.dtype, jnp.inexact)}
    bad = [(name, int(count)) for name, count in processes.whole(_nonfinite(inexact)).items() if count]
    return NonFinite(*bad[0], math.prod(leaves[bad[0][0]].shape)) if bad else None


@jax.jit  # once for all saves of a run
def _nonfinite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.sum(~jnp.isfinite(array), dtype=jnp.int32) for name, array in arrays.items()}


@dataclass(frozen=True)
class JointSave:
    """What one save of several processes writes. Every process makes one, at the same step. norms: that leaves have to
    have, as of `require_norms`."""

    step: int
    leaves: dict[str, SharedLeaf]
    facts: dict[str, Any]
    parents: dict[str, str]
    provenance: dict[str, Any]
    norms: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.array.nbytes for leaf in self.leaves.values())

    def commit(self, temporary: Path, finish: Callable[[Manifest, Path], None]) -> Manifest | None:
        """Write into the new directory `temporary` and let process 0 `finish` it; all return when it is committed.

        temporary: that of process 0 counts. Returns the manifest in process 0, None in the others. Where any process fails,
        the directory is removed, and all raise: what failed, or OSError with what failed in another one.
        """
        began = self._begin(temporary) if processes.primary() else {}
        began = json.loads(processes.told("save/begin", json.dumps(began)))
        if began["error"]:
            raise OSError(began["errno"], began["error"], began["path"])
        temporary = Path(began["path"])
        report, failure = self._write(temporary)
        reports = processes.gathered("save/written", json.dumps(report), everywhere=False)
        manifest = None
        if processes.primary():
            try:
                manifest = self._manifest(temporary, [json.loads(text) for text in reports])
                finish(manifest, temporary)
            except Exception as error:
                shutil.rmtree(temporary, ignore_errors=True)
                failure = failure or error
        words = f"{type(failure).__name__}: {failure}" if failure is not None else ""
        ended = processes.told("save/end", words)
        if failure is not None:
            raise failure
        if ended:
            raise OSError(f"process 0: {ended}")
        return manifest

    def _begin(self, temporary: Path) -> dict[str, Any]:
        try:
            (temporary / STATE).mkdir(parents=True)
            if shutil.disk_usage(temporary).free < self.bytes + 3 * BLOCK * len(self.leaves):
                shutil.rmtree(temporary, ignore_errors=True)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        except OSError as error:
            return {"path": str(temporary), "error": error.strerror or str(error), "errno": error.errno or errno.EIO}
        return {"path": str(temporary), "error": ""}

    def _write(self, temporary: Path) -> tuple[dict[str, Any], Exception | None]:
        """Write this process's part; what process 0 is to know of it, and the error if it failed."""
        try:
            shards = [[name, *shard] for name, leaf in self.leaves.items() for shard in _own_shards(leaf)]
            # Whole everywhere: orbax writes a NumPy array in process 0 alone.
            arrays = {
                name: np.asarray(leaf.array) if leaf.array.is_fully_replicated else leaf.array
                for name, leaf in self.leaves.items()
            }
            write_shards(temporary / STATE, arrays)
        except Exception as error:  # whatever it is, process 0 is to hear of it
            return {"error": f"{type(error).__name__}: {error}"}, error
        return {"error": "", "shards": shards}, None

    def _manifest(self, temporary: Path, reports: list[dict[str, Any]]) -> Manifest:
        """Read every leaf back, compare it with its shards, and write the manifest."""
        for index, report in enumerate(reports):
            if report["error"]:
                raise OSError(f"process {index} of {len(reports)}: {report['error']}")
        complete_arrays(temporary / STATE)
        shards: dict[str, list[tuple[list[list[int]], str]]] = {name: [] for name in self.leaves}
        for report in reports:
            for name, region, digest in report["shards"]:
                shards[name].append((region, digest))
        records = {}
        for name, leaf in self.leaves.items():
            shape = leaf.array.shape
            array = read_arrays(temporary / STATE, [name])[name] if leaf.array.size else np.zeros(shape, leaf.array.dtype)
            record = LeafRecord(leaf.shape, leaf.dtype, leaf_sha256(array, leaf.shape, leaf.dtype))
            if array.shape != shape or array.dtype != stored_dtype(record):
                raise _unlike(temporary, name, f"{leaf.array.dtype}{list(shape)}", f"{array.dtype}{list(array.shape)}")
            if sum(math.prod(end - first for first, end in region) for region, _ in shards[name]) != array.size:
                raise _unlike(temporary, name, "shards that make up the leaf", f"{len(shards[name])} that do not")
            for region, expected in shards[name]:
                found = _digest(array[tuple(slice(first, end) for first, end in region)])
                if found != expected:
                    raise _unlike(temporary, f"{name} {region}", f"sha256 {expected}", f"sha256 {found}")
            if name in self.norms:
                require_norms({name: array}, {name: self.norms[name]}, artifact=temporary)
            records[name] = record
        sync_below(temporary)
        facts = self.facts | {"leaves": {name: dataclasses.asdict(record) for name, record in records.items()}}
        manifest = Manifest(KIND, facts, self.parents, record_files(temporary), self.provenance)
        manifest.save(temporary)
        return manifest


def _own_shards(leaf: SharedLeaf) -> list[tuple[list[list[int]], str]]:
    """Region and digest of every shard that this process is the one to write."""
    shape = leaf.array.shape
    return [
        ([list(cut.indices(size)[:2]) for cut, size in zip(shard.index, shape, strict=True)], _digest(np.asarray(shard.data)))
        for shard in leaf.array.addressable_shards
        if shard.replica_id == 0
    ]


def _digest(array: np.ndarray) -> str:
    return leaf_sha256(array, array.shape, array.dtype.name)


def _unlike(path: Path, name: str, expected: str, found: str) -> ContractError:
    return ContractError(KIND, artifact=f"{path} (leaf {name})", expected=expected, found=found, remedy=COPY)
