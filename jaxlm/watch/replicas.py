"""Whether devices that should hold the same bits do.

JAX believes that an array is replicated because its sharding says so: a buffer that drifted on one device is trained on,
and a checkpoint saves the first one. So the digests of all devices that hold one shard are compared, largest against
smallest: weights that one replica missed an update of, a memory that flipped a bit, processes that began from different
weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.contract import ContractError
from jaxlm.model.spec import named_leaves
from jaxlm.watch.digests import Digests, digests

SHOWN = 5  # leaves that an error spells out; past them they are counted


class Drift(NamedTuple):
    """One shard of a leaf of which devices hold different bits. digests: by device, in the order of the mesh."""

    leaf: str
    digests: dict[jax.Device, int]

    def words(self) -> str:
        """Who holds what: `params/embed: 3ac5... on 7 devices, 91f0... on cpu:5`. The larger group comes first."""
        groups: dict[int, list[jax.Device]] = {}
        for device, digest in self.digests.items():
            groups.setdefault(digest, []).append(device)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        return f"{self.leaf}: " + ", ".join(f"{digest:016x} on {_names(devices)}" for digest, devices in ordered)


def drifted(found: Digests) -> list[Drift]:
    """The shards of which two devices hold different bits, in the order of the tree. Empty for a healthy state."""
    drifts = []
    for leaf, (name, holders) in enumerate(zip(found.leaves, found.holders, strict=True)):
        column = found.table[:, leaf]
        for shard in np.unique(holders):
            held = np.flatnonzero(holders == shard)
            if column[held].max() != column[held].min():
                drifts.append(Drift(name, {found.devices[device]: int(column[device]) for device in held}))
    return drifts


def require_equal_replicas(tree: Any, *, artifact: object) -> None:
    """Compare what the devices hold in common of every leaf of `tree`; every process of the mesh must call this together.

    Raises ContractError, on every process, naming leaves, devices and digests. artifact: what the tree is, in words.
    """
    common = {name: leaf for name, leaf in named_leaves(tree).items() if _in_common(leaf)}
    if not common or not (drifts := drifted(digests(common))):
        return
    rest = f"; and {len(drifts) - SHOWN} more" if len(drifts) > SHOWN else ""
    raise ContractError(
        "replicas",
        artifact=artifact,
        expected="equal bits on all devices that hold the same part of a leaf",
        found="; ".join(drift.words() for drift in drifts[:SHOWN]) + rest,
        remedy="A device that stands alone is to be suspected: take it out, and go on from the last checkpoint, which was "
        "compared before it was written. Where it comes back on other devices, a collective is missing in the program.",
    )


def _in_common(leaf: jax.Array) -> bool:
    """Whether more devices hold a part of `leaf` than there are parts."""
    parts = math.prod(leaf.shape) // max(1, math.prod(leaf.sharding.shard_shape(leaf.shape)))
    return parts < leaf.sharding.num_devices > 1


def _names(devices: list[jax.Device]) -> str:
    """Up to four devices by name, with their process where there is more than one; past that their number."""
    if len(devices) > 4:
        return f"{len(devices)} devices"
    process = jax.process_count() > 1
    return " ".join(f"{d.platform}:{d.id}" + (f" (process {d.process_index})" if process else "") for d in devices)
