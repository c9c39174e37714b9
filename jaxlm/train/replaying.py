"""A step of a run as it was: its state and its batch again, and which equation of it made the first non-finite value.

The state is that of the step's bundle, where one was written with it; else that of the newest checkpoint before the step, from
which the steps between are computed again. Every one of them has to give the figures that the telemetry holds; where one does
not, the bits are others (another machine, another mesh), and that is said, not hidden.

A step that a rollback took back has been done again with another batch. Where its alarm left a bundle, the step of the bundle
is meant, with the batches and the telemetry of the steps that were taken back with it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxlm.config.schema import MeshConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.data import Batch, batch
from jaxlm.parallel import make_mesh
from jaxlm.run import History, Run
from jaxlm.train.recorder import bundles, read_batch, read_state
from jaxlm.train.state import TrainState, abstract_state, put_batch
from jaxlm.train.step import train_step
from jaxlm.train.take_back import copied, take_back
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
    lived = _lived(run, step)
    steps = len(run.telemetry())
    if step not in lived.records:
        raise InputError(f"--step: expected one of the {steps} steps that {run.path} has done, found {step}")
    run = run.at(step)
    cfg = _on_these_devices(run.config)
    mesh = make_mesh(cfg.mesh)
    bundle = bundles(run.layout.bundles).get(step)
    with jax.set_mesh(mesh):
        like = abstract_state(cfg, mesh)
        state = None if bundle is None else read_state(bundle, like)
        fed = batch_of(run, step - 1, lived.history) if bundle is None else read_batch(bundle)
        if state is not None:
            return Recorded(step, cfg, state, fed, f"the bundle {bundle}", None)
        before = [saved for saved in run.checkpoints.committed() if saved < step and saved <= lived.shared]
        if not before:
            held = ", ".join(map(str, run.checkpoints.committed())) or "none"
            raise InputError(f"{run.path}: expected a checkpoint before step {step}, found {held}; name a later step")
        if run.at(before[-1] + 1).manifest.fingerprint != run.manifest.fingerprint:
            raise InputError(f"{run.path}: expected a checkpoint between the declared change and step {step}, found none")
        state, _ = run.checkpoints.restore(like, before[-1])
        say(f"step {step} begins {step - 1 - before[-1]} steps after the checkpoint of step {before[-1]}")
        state, differing = _computed_again(run, lived, cfg, mesh, state, before[-1], step - 1)
    return Recorded(step, cfg, state, fed, f"the checkpoint of step {before[-1]}", differing)


def replay_step(found: Recorded) -> Replay:
    """The step again, equation by equation."""
    mesh = make_mesh(found.cfg.mesh)
    with jax.set_mesh(mesh):
        return replay(train_step, found.state, put_batch(found.batch, found.cfg, mesh), layer_scan="hidden")


class Lived(NamedTuple):
    """Steps as a run did them. records: of the telemetry, by step. history: by which their batches were made. shared: the last
    step of theirs that the run, as it stands, has in common with them."""

    records: Mapping[int, Mapping[str, Any]]
    history: History
    shared: float


def _lived(run: Run, step: int) -> Lived:
    """The steps that led to `step`: to that of its bundle, where there is one."""
    records, history, count = {record["step"]: record for record in run.telemetry()}, run.history(), 0
    bundle = bundles(run.layout.bundles).get(step)
    name = None if bundle is None else bundle.relative_to(run.path).as_posix()
    for event in run.events():
        if event["event"] == "alarm" and name is not None and event.get("bundle") == name:
            break
        count += event["event"] == "rollback"
    since = history.rollbacks[count:]
    if not any(back.undoes(step) for back in since):
        return Lived(records, history, math.inf)
    shared = min(back.to for back in since)
    for back in reversed(since):  # before each, the telemetry was what is left of it now, and what its file holds
        records = {at: record for at, record in records.items() if at <= back.to}
        records |= {record["step"]: record for record in _lines(run.path / back.undone)}
    return Lived(records, history.first(count), shared)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records that a rollback took back. Raises InputError where they are lost."""
    if not path.is_file():
        raise InputError(
            f"{path}: expected the telemetry that a rollback took back, found no such file; restore it from a copy"
        )
    yield from map(json.loads, path.read_bytes().splitlines())


def batch_of(run: Run, done: int, history: History | None = None) -> Batch:
    """The batch of the step that follows `done` steps: a pure function of config, data and the run's rollbacks."""
    run = run.at(done + 1)
    cfg = run.config
    return batch(
        run.data.train,
        step=(run.history() if history is None else history).index(done),
        seed=cfg.data.order_seed,
        batch_size=cfg.train.batch_size,
        context_length=cfg.model.context_length,
    )


def _computed_again(
    run: Run, lived: Lived, cfg: RunConfig, mesh: Mesh, state: TrainState, done: int, until: int
) -> tuple[TrainState, int | None]:
    """The state after `until` steps, from that after `done`, and the first step whose figures are others."""
    held = lived.records
    differing = None
    for step in range(done + 1, until + 1):
        before = copied(state) if "taken_back" in held[step] else None
        state, telemetry = train_step(state, put_batch(batch_of(run, step - 1, lived.history), cfg, mesh))
        if before is not None:
            state, telemetry = take_back(before, state, telemetry)
        now = record_of(telemetry, labels_bytes=0, positions=cfg.tokens_per_step)
        if differing is None and any(now[name] != held[step][name] for name in EXACT):
            differing = step
    return state, differing


def _on_these_devices(cfg: RunConfig) -> RunConfig:
    """The config on its mesh, or on one device where there are too few."""
    if cfg.mesh.size <= jax.device_count():
        return cfg
    return dataclasses.replace(cfg, mesh=MeshConfig())
