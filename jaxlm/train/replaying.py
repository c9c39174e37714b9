"""A step of a run as it was: its state and its batch again, and which equation of it made the first non-finite value.

The state is that of the step's bundle, where one was written with it; else that of the newest checkpoint before the step, from
which the steps between are computed again. Every one of them has to give the figures that the telemetry holds; where one does
not, the bits are others (another machine, another mesh), and that is said, not hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxlm.config.schema import MeshConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.data import Batch, batch
from jaxlm.parallel import make_mesh
from jaxlm.run import Run
from jaxlm.train.recorder import bundles, read_batch, read_state
from jaxlm.train.state import TrainState, abstract_state, put_batch
from jaxlm.train.step import train_step
from jaxlm.watch import record_of
from jaxlm.watch.replay import Replay, replay

EXACT = ("loss", "grad_norm", "param_norm")  # figures that a step computed again repeats


class Recorded(NamedTuple):
    """A step of a run before it is computed: number `step`, from 1. origin: where its state comes from, in words. differing:
    the first step on the way that gave other figures than the telemetry holds, or None."""

    step: int
    cfg: RunConfig
    state: TrainState
    batch: Batch
    origin: str
    differing: int | None


def step_to_replay(run: Run) -> int:
    """The step to look at where none is named: that of the first bundle, else the first that was skipped.

    Raises InputError where there is neither.
    """
    if found := bundles(run.layout.bundles):
        return next(iter(found))
    skipped = next((record["step"] for record in run.telemetry() if record["skipped"]), None)
    if skipped is None:
        raise InputError(
            f"{run.path}: expected a step with an alarm, or one that was skipped, found none; name a step with --step"
        )
    return int(skipped)


def recorded(run: Run, step: int, *, say: Callable[[str], None] = lambda line: None) -> Recorded:
    """Step number `step` of a run, from 1, as it began.

    Raises InputError where the run has not come so far, or no checkpoint lies before the step.
    """
    steps = len(run.telemetry())
    if not 1 <= step <= steps:
        raise InputError(f"--step: expected one of the {steps} steps that {run.path} has done, found {step}")
    cfg = _on_these_devices(run.config)
    mesh = make_mesh(cfg.mesh)
    bundle = bundles(run.layout.bundles).get(step)
    with jax.set_mesh(mesh):
        like = abstract_state(cfg, mesh)
        state = None if bundle is None else read_state(bundle, like)
        fed = batch_of(run, step - 1) if bundle is None else read_batch(bundle)
        if state is not None:
            return Recorded(step, cfg, state, fed, f"the bundle {bundle}", None)
        before = [saved for saved in run.checkpoints.committed() if saved < step]
        if not before:
            held = ", ".join(map(str, run.checkpoints.committed())) or "none"
            raise InputError(f"{run.path}: expected a checkpoint before step {step}, found {held}; name a later step")
        state, _ = run.checkpoints.restore(like, before[-1])
        say(f"step {step} begins {step - 1 - before[-1]} steps after the checkpoint of step {before[-1]}")
        state, differing = _computed_again(run, cfg, mesh, state, before[-1], step - 1)
    return Recorded(step, cfg, state, fed, f"the checkpoint of step {before[-1]}", differing)


def replay_step(found: Recorded) -> Replay:
    """The step again, equation by equation."""
    mesh = make_mesh(found.cfg.mesh)
    with jax.set_mesh(mesh):
        return replay(train_step, found.state, put_batch(found.batch, found.cfg, mesh), layer_scan="hidden")


def batch_of(run: Run, done: int) -> Batch:
    """The batch of the step that follows `done` steps: a pure function of config and data."""
    cfg = run.config
    return batch(
        run.data.train,
        step=done,
        seed=cfg.data.order_seed,
        batch_size=cfg.train.batch_size,
        context_length=cfg.model.context_length,
    )


def _computed_again(
    run: Run, cfg: RunConfig, mesh: Mesh, state: TrainState, done: int, until: int
) -> tuple[TrainState, int | None]:
    """The state after `until` steps, from that after `done`, and the first step whose figures are others."""
    held = {record["step"]: record for record in run.telemetry() if done < record["step"] <= until}
    differing = None
    for step in range(done + 1, until + 1):
        state, telemetry = train_step(state, put_batch(batch_of(run, step - 1), cfg, mesh))
        now = record_of(telemetry, labels_bytes=0, positions=cfg.tokens_per_step)
        if differing is None and any(now[name] != held[step][name] for name in EXACT):
            differing = step
    return state, differing


def _on_these_devices(cfg: RunConfig) -> RunConfig:
    """The config on its mesh, or on one device where there are too few."""
    if cfg.mesh.size <= jax.device_count():
        return cfg
    return dataclasses.replace(cfg, mesh=MeshConfig())
