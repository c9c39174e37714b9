"""A step of a run as it was: its state and its batch again, and which equation of it made the first non-finite value.

The state is that of the step's bundle, where one was written with it; else that of the newest checkpoint before the step, or
where there is none the one that the config begins with, from which the steps between are computed again. Every one of them, and
the step itself, has to give the figures that the telemetry holds; where one does not, the bits are others (another machine,
another mesh), or the run had another state or batch than its checkpoints and seeds give, and that is said, not hidden.

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

from jaxlm.checkpoint import differences
from jaxlm.config.schema import MeshConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.data import Batch, batch, batch_crc
from jaxlm.parallel import make_mesh
from jaxlm.run import History, Run
from jaxlm.train.recorder import bundles, read_batch, read_state
from jaxlm.train.state import TrainState, abstract_state, environment_of, initial_state, put_batch
from jaxlm.train.step import train_step
from jaxlm.train.take_back import copied, take_back
from jaxlm.watch import record_of
from jaxlm.watch.replay import Replay, replay

EXACT = ("loss", "grad_norm", "param_norm")  # figures that a step computed again repeats
NEAR = 0.02  # relative difference of a figure that the rounding of another environment, over some hundred steps, explains


class Recorded(NamedTuple):
    """A step of a run before it is computed: number `step`, from 1. record: of the telemetry. origin: where its state comes
    from, in words. differing: the first step on the way that gave other figures than the telemetry holds, or None. unlike: why
    equal bits are not promised here, a line each; none where they are."""

    step: int
    cfg: RunConfig
    record: Mapping[str, Any]
    state: TrainState
    batch: Batch
    origin: str
    differing: int | None
    unlike: tuple[str, ...]

    @property
    def nonfinite(self) -> bool:
        """Whether the run had something in the step that was not finite."""
        counts = [*self.record["nonfinite_forward"].values(), self.record["nonfinite_backward"]]
        return not self.record["finite"] or any(any(each) for each in counts)


class Compared(NamedTuple):
    """A step computed again, as a whole, against its record: figures by name. unlike: as of `Recorded`."""

    recorded: Mapping[str, Any]
    found: Mapping[str, Any]
    unlike: tuple[str, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """The figures that came out as others."""
        return tuple(name for name, value in self.recorded.items() if value != self.found[name])

    @property
    def kept(self) -> bool:
        """Whether it is the step of the run, as far as this environment can tell: bit by bit, where that is promised."""
        return all(self.unlike and _near(self.recorded[name], self.found[name]) for name in self.differing)

    def words(self, origin: str) -> str:
        """A paragraph for the terminal. origin: where the state comes from."""
        if not self.differing:
            return "as recorded: " + ", ".join(f"{name} {_told(name, value)}" for name, value in self.recorded.items())
        lines = ["as recorded but for rounding:" if self.kept else "not as recorded:"]
        for name in self.differing:
            lines.append(f"  {name}: {_told(name, self.recorded[name])} recorded, {_told(name, self.found[name])} now")
        lines += [f"  equal bits are not promised: {line}" for line in self.unlike]
        if not self.kept:
            other = "batch" if "batch_crc" in self.differing else "state" if "batch_crc" in self.recorded else "state or batch"
            made = f"{origin}, the data and the seeds give"
            was = f"the {other} that the run had in this step was another one than {made}"
            near = all(_near(self.recorded[name], self.found[name]) for name in self.differing)
            little = f"versions of jaxlm may differ by as little; with the same one, {was}"
            lines.append(little if near else f"{was}, or the code was")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and objects."""
        figures = {name: {"recorded": value, "found": self.found[name]} for name, value in self.recorded.items()}
        return {"kept": self.kept, "differing": list(self.differing), "figures": figures, "unlike": list(self.unlike)}


def _near(recorded: Any, found: Any) -> bool:
    """Whether rounding may lie between two figures; never between a number and none, nor between digests."""
    return isinstance(recorded, float) and isinstance(found, float) and math.isclose(recorded, found, rel_tol=NEAR)


def _told(name: str, value: Any) -> str:
    return f"{value:08x}" if name == "batch_crc" else f"{value:.9g}" if isinstance(value, float) else str(value)


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

    say: is told from how far the state is computed again. Raises InputError where the run has not come so far, or neither a
    checkpoint nor the beginning lies between the step and what was declared last before it.
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
        record, unlike = lived.records[step], _unlike(run, step, cfg, mesh)
        if state is not None:
            return Recorded(step, cfg, record, state, fed, f"the bundle {bundle}", None, unlike)
        done = max(saved for saved in (0, *run.checkpoints.committed()) if saved < step and saved <= lived.shared)
        if run.at(done + 1).manifest.fingerprint != run.manifest.fingerprint:
            raise InputError(
                f"{run.path}: expected a checkpoint between the declared change and step {step}, found none; it has those of "
                f"{', '.join(map(str, run.checkpoints.committed())) or 'no step'}"
            )
        origin = f"the checkpoint of step {done}" if done else "the initial state"
        why = "" if done else ", since no checkpoint lies before it"
        say(f"step {step} begins {step - 1 - done} steps after {origin}, which are computed again{why}")
        state = run.checkpoints.restore(like, done)[0] if done else initial_state(cfg, mesh)
        state, differing = _computed_again(run, lived, cfg, mesh, state, done, step - 1)
    return Recorded(step, cfg, record, state, fed, origin, differing, unlike)


def _unlike(run: Run, step: int, cfg: RunConfig, mesh: Mesh) -> tuple[str, ...]:
    """Why equal bits are not promised of a step: what this environment differs in from that of the first checkpoint after it,
    or of the newest one, or of the run."""
    saved = run.checkpoints.steps()
    after = next((each for each in saved if each >= step), saved[-1] if saved else None)
    there = run.manifest.provenance["environment"] if after is None else run.checkpoints.manifest(after).facts["environment"]
    here = environment_of(cfg, mesh, grad_accum=cfg.train.grad_accum)
    sums = [] if here["deterministic"] else ["sums of this device come in any order"]
    return (*differences(there, here), *sums)


def replay_step(found: Recorded) -> Replay:
    """The step again, equation by equation."""
    mesh = make_mesh(found.cfg.mesh)
    with jax.set_mesh(mesh):
        return replay(train_step, found.state, put_batch(found.batch, found.cfg, mesh), layer_scan="hidden")


def compare_step(found: Recorded) -> Compared:
    """The step again, as a whole, as the run computed it, against what the telemetry holds of it."""
    mesh = make_mesh(found.cfg.mesh)
    with jax.set_mesh(mesh):
        _, now = _stepped(copied(found.state), found.batch, found.cfg, mesh, found.record)
    names = [*EXACT, *(["batch_crc"] if found.record.get("batch_crc") is not None else [])]
    now["batch_crc"] = int(batch_crc(found.batch))
    return Compared({name: found.record[name] for name in names}, {name: now[name] for name in names}, found.unlike)


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
        state, now = _stepped(state, batch_of(run, step - 1, lived.history), cfg, mesh, held[step])
        if differing is None and any(now[name] != held[step][name] for name in EXACT):
            differing = step
    return state, differing


def _stepped(
    state: TrainState, fed: Batch, cfg: RunConfig, mesh: Mesh, record: Mapping[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """The state after one step, without its update where the record says that it was taken back, and its figures."""
    before = copied(state) if "taken_back" in record else None
    state, telemetry = train_step(state, put_batch(fed, cfg, mesh))
    if before is not None:
        state, telemetry = take_back(before, state, telemetry)
    return state, record_of(telemetry, labels_bytes=0, positions=cfg.tokens_per_step)


def _on_these_devices(cfg: RunConfig) -> RunConfig:
    """The config on its mesh, or on one device where there are too few."""
    if cfg.mesh.size <= jax.device_count():
        return cfg
    return dataclasses.replace(cfg, mesh=MeshConfig())
