"""One save: from leaves in host memory to a committed directory, or to nothing at all."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.checkpoint.arrays import write_arrays
from jaxlm.checkpoint.leaves import HostLeaf
from jaxlm.checkpoint.norms import require_norms
from jaxlm.checkpoint.verifying import KIND, STATE, read_leaves
from jaxlm.contract import Manifest, record_files, sync_below

BLOCK = 4096  # bytes in which file systems count


class SaveError(RuntimeError):
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


@dataclass(frozen=True)
class Save:
    """What one save writes. norms: that leaves have to have, as of `require_norms`."""

    step: int
    leaves: dict[str, HostLeaf]
    facts: dict[str, Any]
    parents: dict[str, str]
    provenance: dict[str, Any]
    norms: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.data.nbytes for leaf in self.leaves.values())

    def write(self, temporary: Path) -> Manifest:
        """Write into the new directory `temporary`: leaves, flushed and read back; the manifest last.

        The directory is removed where anything fails, and what failed is raised.
        """
        try:
            temporary.mkdir(parents=True)
            # Asked beforehand: on a disk that fills up under it, tensorstore prints tracebacks of its own threads. A leaf takes
            # two small files and up to a block more than its bytes.
            if shutil.disk_usage(temporary).free < self.bytes + 3 * BLOCK * len(self.leaves):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
            records = {name: leaf.record() for name, leaf in self.leaves.items()}
            write_arrays(temporary / STATE, {name: leaf.data for name, leaf in self.leaves.items()})
            # Orbax may cast or drop without a word: what is committed has been read back.
            data, findings = read_leaves(temporary, records)
            for finding in findings:
                if not finding.kept:
                    raise finding.error()
            require_norms(data, self.norms, artifact=temporary)
            sync_below(temporary)
            facts = self.facts | {"leaves": {name: dataclasses.asdict(record) for name, record in records.items()}}
            manifest = Manifest(KIND, facts, self.parents, record_files(temporary), self.provenance)
            manifest.save(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return manifest
