"""A step whose update is taken back: the state before it, counted on.

The state before the step is kept as a copy on the devices, which costs its memory once more (12 bytes a parameter in float32
with two moments, divided by the shards) and the time of copying it in every step. Nothing is multiplied or subtracted: the bits
of the copy are the state, whatever the step made of it. The optimizer's count stands still, as in a step that is not finite.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.model import LossScale
from jaxlm.train.state import TrainState
from jaxlm.watch import Telemetry, leaf_norms, total_norm

copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
"""A copy of a state, whose buffers outlive the step that it is given to."""


def _taken_back(before: TrainState, loss_scale: LossScale, telemetry: Telemetry) -> tuple[TrainState, Telemetry]:
    norms, skipped = leaf_norms(before.params), before.skipped + 1
    telemetry = dataclasses.replace(
        telemetry,
        param_norm=total_norm(norms),
        update_norm=jnp.zeros_like(telemetry.update_norm),
        skipped=skipped,
        leaf_param_norms=norms,
        leaf_update_norms=jax.tree.map(jnp.zeros_like, telemetry.leaf_update_norms),
    )
    return dataclasses.replace(before, step=before.step + 1, loss_scale=loss_scale, skipped=skipped), telemetry


_jitted = jax.jit(_taken_back, donate_argnames="before")


def take_back(before: TrainState, after: TrainState, telemetry: Telemetry) -> tuple[TrainState, Telemetry]:
    """The state after a step that shall not have updated anything, and its telemetry: parameters, moments and counts of
    `before`, a copy that is used up; of `after` only the loss scale, which judges gradients and not updates."""
    return _jitted(before, after.loss_scale, telemetry)
