"""A step computed twice from one state and one batch, and compared bit by bit.

A processor that now and then multiplies wrong leaves finite numbers of the usual size: no loss curve and no norm shows a
flipped mantissa bit. The same program on the same bits does, since it has to give the same bits. What this cannot see is a
device that makes the same mistake each time.

The step donates its state, so the first computation works on a copy, and only digests of what it gave are kept. That costs
the memory of the state once more (12 bytes a parameter in float32 with two moments, divided by the shards) and the time of
one more step, in the steps that are computed twice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.contract import ContractError
from jaxlm.train.state import TrainState
from jaxlm.train.step import train_step
from jaxlm.watch import Telemetry
from jaxlm.watch.digests import Digests, digests

SHOWN = 5  # leaves that an error spells out; past them they are counted
_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def step_twice(state: TrainState, batch: Any, *, artifact: object, deterministic: bool) -> tuple[TrainState, Telemetry]:
    """`train_step(state, batch)`, computed twice; every process of the mesh must call this together.

    artifact: what is being trained, in words. deterministic: whether the device promises equal bits at all
    (`environment()["deterministic"]`), by which the error tells a program of any order from a device that computes wrong.
    Raises ContractError, on every process, where one bit of the new state or of the telemetry differs.
    """
    first = _outcome(*train_step(_copied(state), batch))
    state, telemetry = train_step(state, batch)
    if differing := _differing(first, _outcome(state, telemetry)):
        rest = f"; and {len(differing) - SHOWN} more leaves" if len(differing) > SHOWN else ""
        raise ContractError(
            "recompute",
            artifact=artifact,
            expected="equal bits from one program, one state and one batch",
            found="; ".join(differing[:SHOWN]) + rest,
            remedy=_CORRUPTION if deterministic else _ANY_ORDER,
        )
    return state, telemetry


_CORRUPTION = (
    "Silent data corruption: a device computed wrong, and no norm would have shown it. Test or replace the device, and go on "
    "from the last checkpoint; steps since the last one that was computed twice are to be doubted as well."
)
_ANY_ORDER = (
    "Sums of this device come in any order, so nothing follows yet: set XLA_FLAGS=--xla_gpu_deterministic_ops=true, or "
    "--watch.recompute-every 0. With that flag set, a difference is silent data corruption."
)


def _outcome(state: TrainState, telemetry: Telemetry) -> Digests:
    return digests({"state": state, "telemetry": telemetry})


def _differing(first: Digests, second: Digests) -> list[str]:
    """One line for each leaf that differs: `state/params/embed: 3ac5... then 91f0... on cpu:5`."""
    lines = []
    for leaf in np.flatnonzero((first.table != second.table).any(axis=0)):
        before, after = first.table[:, leaf], second.table[:, leaf]
        where = np.flatnonzero(before != after)
        devices = " ".join(f"{first.devices[i].platform}:{first.devices[i].id}" for i in where[:4])
        whole = len(where) == len(first.devices) > 1
        on = "all devices" if whole else devices + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        lines.append(f"{first.leaves[leaf]}: {before[where[0]]:016x} then {after[where[0]]:016x} on {on}")
    return lines
