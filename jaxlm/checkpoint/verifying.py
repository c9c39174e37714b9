"""Is a checkpoint what it promises? Every file against its digest, every leaf, as orbax reads it, against its own."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.checkpoint.arrays import leaves_of_files, read_arrays
from jaxlm.checkpoint.leaves import LeafRecord, leaf_sha256
from jaxlm.contract import MANIFEST, ContractError, Finding, Manifest, canonical_json

KIND = "checkpoint"
STATE = "state"  # the directory of the leaves within a checkpoint
COPY = "Restore it from a copy, or resume from another checkpoint."


def verify_files(root: Path, manifest: Manifest) -> list[Finding]:
    """Every file below `root` against the manifest; a finding's artifact is the file, with the leaf that it belongs to."""
    below = _files_below(root)
    leaf_of = leaves_of_files(below | manifest.files.keys(), manifest.facts["leaves"], below=STATE)

    def artifact(name: str) -> str:
        return str(root / name) if leaf_of[name] is None else f"{root / name} (leaf {leaf_of[name]})"

    findings = []
    for name, finding in zip(sorted(manifest.files), manifest.verify_files(root), strict=True):
        findings.append(dataclasses.replace(finding, artifact=artifact(name), remedy=COPY))
    for name in sorted(below - manifest.files.keys() - {MANIFEST}):
        remedy = "Remove it, if nothing needs it: nothing of this project made it."
        findings.append(Finding(KIND, artifact(name), False, "no such file", "one", remedy))
    return findings


def read_leaves(root: Path, records: Mapping[str, LeafRecord]) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """Read every leaf of the checkpoint at `root` and compare it with its record."""
    filled = {name: record for name, record in records.items() if math.prod(record.shape)}
    try:
        data = read_arrays(root / STATE, filled)
    except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:  # what orbax and tensorstore raise
        return {}, [
            Finding(KIND, str(root / STATE), False, "leaves that orbax can read", " ".join(str(error).split())[:400], COPY)
        ]
    findings = []
    for name, record in records.items():
        if name not in filled:
            data[name] = np.zeros(record.shape, stored_dtype(record))
        array, artifact = data[name], f"{root} (leaf {name})"
        found = f"{array.dtype.name}{list(array.shape)}"
        # The digest covers the recorded shape and dtype; that orbax gave this shape and dtype is checked beside it.
        trailing = array.shape[len(record.shape) :] if record.dtype.startswith("key<") else ()
        if array.dtype != stored_dtype(record) or array.shape != (*record.shape, *trailing):
            findings.append(Finding(KIND, artifact, False, f"{record.dtype}{list(record.shape)}", found, COPY))
            continue
        digest = leaf_sha256(array, record.shape, record.dtype)
        kept = digest == record.sha256
        findings.append(Finding(KIND, artifact, kept, f"sha256 {record.sha256}", f"sha256 {digest}", "" if kept else COPY))
    return data, findings


def records_of(manifest: Manifest) -> dict[str, LeafRecord]:
    """The leaves that a manifest promises, by name."""
    return {name: LeafRecord.from_json(body) for name, body in manifest.facts["leaves"].items()}


def require_facts(manifest: Manifest, expect: Mapping[str, Any], *, artifact: Path) -> None:
    """Raise ContractError where a fact, or a parent of some kind, is not the expected one."""
    held = {**manifest.facts, **manifest.parents}
    for name, value in expect.items():
        if name not in held or canonical_json(held[name]) != canonical_json(value):
            found = f"{name} {held[name]!r}" if name in held else f"no fact or parent named {name}"
            remedy = "Restore with what it was saved with, or start a new run."
            raise ContractError(KIND, artifact=artifact, expected=f"{name} {value!r}", found=found, remedy=remedy)


def stored_dtype(record: LeafRecord) -> np.dtype:
    """The dtype of a leaf's bytes: its own (bfloat16 and its kin included), or that of the key data of PRNG keys."""
    name = "uint32" if record.dtype.startswith("key<") else record.dtype
    return np.dtype(getattr(ml_dtypes, name, name))


def _files_below(root: Path) -> set[str]:
    """Everything below `root` that is no directory, links included, as `/`-joined relative paths."""
    return {Path(folder, name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names}
