"""The host loop: from a config to a trained run, or from a run that was cut off to the same run, whole.

`fit` prepares tokenizer and data, runs the static probes, and then repeats: batch, step, telemetry; now and then a validation
and a checkpoint. The loop does no arithmetic that enters the numbers: those are in the step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.checkpoint import CheckpointStore, differences, environment
from jaxlm.config.load import config_fingerprint, describe
from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, FileRecord, Manifest, check
from jaxlm.data import Batch, Prefetcher, batch, batch_crc, check_batch
from jaxlm.model import model_manifest, param_specs
from jaxlm.model.spec import count_params, named_leaves
from jaxlm.parallel import make_mesh
from jaxlm.run import Layout, Run, run_manifest
from jaxlm.train.prepare import Parts, Say, claim, forget, prepare, resolve
from jaxlm.train.probes import Probe, require, run_probes
from jaxlm.train.probes_forward import batch_is_pure
from jaxlm.train.state import TrainState, abstract_state, initial_state, put_batch, rules
from jaxlm.train.step import train_step
from jaxlm.train.stop import StopRequest
from jaxlm.train.validate import Validation, label_bytes, validate
from jaxlm.watch import ChainedLog, Mark, Progress, duration, number, record_of
from jaxlm.watch.sinks import START


def fit(
    cfg: RunConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
    like: Run | None = None,
    say: Say | None = None,
) -> Run:
    """Train a run to its last step and return it.

    out: the run directory, runs/NAME by default. A run that is there and has the same config is resumed from its newest
    checkpoint (with `allow_older`, from the newest one that is whole). like: a run to reproduce, whose tokenizer and data must
    come out the same. say: takes the lines meant for a person; standard error by default.

    SIGTERM saves and returns the run as it is; Ctrl-C saves and raises KeyboardInterrupt.
    Raises InputError for a user's mistake, ContractError for a broken contract (a failed probe among them), SaveError where a
    checkpoint could not be written.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    layout = Layout(Path(out) if out is not None else Path("runs") / cfg.name)
    cfg = resolve(cfg, layout)
    mesh = make_mesh(cfg.mesh)
    rules(cfg).check(named_leaves(param_specs(cfg.model)), cfg.mesh)
    with layout.locked():
        new = not layout.resolved.is_file()
        cfg = claim(cfg, layout)
        try:
            parts = prepare(cfg, layout, say=say, like=None if like is None else like.manifest)
            for line in [*describe(cfg), *_sizes(parts, mesh)]:
                say(line)
            with jax.set_mesh(mesh):
                session = _Session(parts, layout, mesh, say, allow_older)
                with session.telemetry, session.events, session.store:
                    session.train()
        except Exception:
            if new:
                forget(layout)
            raise
    if session.stop.signal is signal.SIGINT:
        raise KeyboardInterrupt(f"`jaxlm train {layout.path}` goes on")
    return Run.load(layout.path)


def _sizes(parts: Parts, mesh: Mesh) -> Iterator[str]:
    """The numbers that follow from config, tokenizer and data, in words."""
    cfg = parts.cfg
    train, val = (parts.data.manifest.facts["splits"][split] for split in ("train", "val"))
    yield f"tokenizer  {parts.tokenizer.vocab_size} tokens, {parts.tokenizer.fingerprint[:12]}"
    yield (
        f"data       {train['documents']:,} + {val['documents']:,} documents, {train['tokens']:,} + {val['tokens']:,} tokens, "
        f"{train['bytes'] / train['tokens']:.2f} bytes/token"
    )
    epochs = cfg.train.steps * cfg.tokens_per_step / train["tokens"]
    yield f"model      {count_params(param_specs(cfg.model)):,} parameters"
    yield f"training   {cfg.train.steps:,} steps x {cfg.tokens_per_step:,} tokens = {epochs:.2f} epochs"
    device = mesh.devices.flat[0]
    yield f"devices    {mesh.size} x {device.device_kind} ({device.platform}), rules {cfg.mesh.rules}"
    if mesh.size > 1:
        for path, dims, shape, layout, size in rules(cfg).table(named_leaves(param_specs(cfg.model)), cfg.mesh):
            yield f"  {path:<18}{dims:<5}{shape:<20}{layout:<18}{size:>15,} B"


def _log(path: Path, keep: Mark | None, expected: str) -> ChainedLog:
    """The log at `path`, opened to go on. Raises ContractError where it is damaged."""
    try:
        return ChainedLog(path, keep=keep)
    except ValueError as error:
        remedy = "Restore it from a copy, or start a new run."
        raise ContractError("telemetry", artifact=path, expected=expected, found=str(error), remedy=remedy) from None


class _Session:
    """One process's share of a run: from where the run stands to its end, or to a request to stop."""

    def __init__(self, parts: Parts, layout: Layout, mesh: Mesh, say: Say, allow_older: bool):
        self.parts, self.cfg, self.layout, self.mesh, self.say = parts, parts.cfg, layout, mesh, say
        cfg = self.cfg
        self.environment = environment(
            mesh_shape=dict(mesh.shape), grad_accum=cfg.train.grad_accum, precision=cfg.train.precision
        )
        self.model = model_manifest(cfg.model, parts.tokenizer.manifest)
        keep = cfg.checkpoint
        self.store = CheckpointStore(
            layout.checkpoints, keep_last=keep.keep_last, keep_best=keep.keep_best, asynchronous=keep.asynchronous, clean=True
        )
        self.stop = StopRequest()
        self.manifest = Manifest.load(layout.path, "run") if layout.manifest.is_file() else None
        self.differing: list[str] = []
        if self.manifest is not None:
            self._require_same_parts(self.manifest)
        self.state, mark = self._restored(allow_older) if self.store.committed() else (initial_state(cfg, mesh), Mark(0, START))
        self.events = _log(layout.events, None, "a whole log")
        self.telemetry = _log(layout.telemetry, mark, f"the {mark.lines} lines that the checkpoint has seen")

    def _require_same_parts(self, manifest: Manifest) -> None:
        """Raise ContractError where the run was made from another tokenizer, data or model than there are now."""
        for part in (self.parts.tokenizer.manifest, self.parts.data.manifest):
            check(part, manifest)
        recorded = Manifest.from_json(manifest.facts["model"], artifact=self.layout.manifest)
        if recorded.fingerprint != self.model.fingerprint:
            raise ContractError(
                "model",
                artifact=self.layout.manifest,
                expected=f"model {recorded.fingerprint}",
                found=f"model {self.model.fingerprint}",
                remedy="Use the version of jaxlm that the run was made with.",
            )

    # ---- before the first step -----------------------------------------------------------------------------------

    def _restored(self, allow_older: bool) -> tuple[TrainState, Mark]:
        like = abstract_state(self.cfg, self.mesh)
        expect = {"tokenizer": self.parts.tokenizer.fingerprint, "data": self.parts.data.manifest.fingerprint}
        if self.manifest is not None:
            expect["run"] = self.manifest.fingerprint
        state, manifest = self.store.restore(like, allow_older=allow_older, expect=expect)
        self.differing = differences(manifest.facts["environment"], self.environment)
        self.say(f"resuming at step {manifest.facts['step']} from {self.store.path(manifest.facts['step'])}")
        for line in self.differing:
            self.say(f"  another environment, so equal bits are not promised: {line}")
        if not self.environment["deterministic"]:
            self.say("  sums of this device come in any order, so equal bits are not promised; set")
            self.say("  XLA_FLAGS=--xla_gpu_deterministic_ops=true from the first step on")
        return state, Mark(**manifest.facts["telemetry"])

    def batch(self, step: int) -> Batch:
        """The batch of the step that follows `step` steps done: a pure function of config and data."""
        cfg = self.cfg
        return batch(
            self.parts.data.train,
            step=step,
            seed=cfg.data.order_seed,
            batch_size=cfg.train.batch_size,
            context_length=cfg.model.context_length,
        )

    def check(self, made: Batch, step: int) -> None:
        """The batch contract, every step."""
        cfg = self.cfg
        check_batch(
            made,
            vocab_size=cfg.model.vocab_size,
            context_length=cfg.model.context_length,
            min_supervised=cfg.data.min_supervised,
            label=f"batch of step {step + 1}",
        )

    def probe(self) -> dict[str, Probe]:
        """Run every static probe on the state that is about to be trained; raise at the first that fails."""
        began, step = time.monotonic(), int(self.state.step)
        self.say("probes     compiling and running, before the first step")
        first = self.batch(step)
        self.check(first, step)
        where = self.layout.path
        results = [require(batch_is_pure(self.batch, step), artifact=where)]
        for result in run_probes(self.cfg, self.mesh, self.state.params, first, fresh=step == 0):
            results.append(require(result, artifact=where))
        seconds = time.monotonic() - began
        self.say(f"probes     {len(results)} passed in {duration(seconds)}")
        self.event("probes", step=step, seconds=seconds, results={p.name: p.fact() for p in results})
        return {p.name: p for p in results}

    def event(self, event: str, **fields: Any) -> None:
        """One line in the event log."""
        clean = {k: number(v) if isinstance(v, float) else v for k, v in fields.items()}
        self.events.append({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **clean})

    # ---- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """From the state's step to the last one."""
        cfg, step = self.cfg, int(self.state.step)
        if step >= cfg.train.steps:
            self.say(f"{self.layout.path} has its {cfg.train.steps} steps; nothing is left to train")
            return
        self.event("start", step=step, environment=self.environment, differing=self.differing)
        with self.stop:
            probes = self.probe()
            if self.manifest is None:
                self.manifest = self._promise(probes)
            progress = Progress(steps=cfg.train.steps, tokens_per_step=cfg.tokens_per_step, watch=cfg.watch)
            with progress, Prefetcher(self.batch, start=step, stop=cfg.train.steps, depth=cfg.data.prefetch) as batches:
                progress.start(step)
                began = time.monotonic()
                for step, made in batches:
                    self._step(step, made, progress)
                    if self.stop.signal is not None:
                        break
                done = int(self.state.step)
                self.store.wait()
                if self.store.latest() != done:
                    self._save(done, None)
                    self.store.wait()
        self.event("end", step=done, seconds=time.monotonic() - began, signal=self.stop.signal and self.stop.signal.name)
        if self.stop.signal is not None:
            self.say(f"stopped at step {done}, saved; `jaxlm train {self.layout.path}` goes on")

    def _promise(self, probes: dict[str, Probe]) -> Manifest:
        manifest = run_manifest(
            self.cfg,
            tokenizer=self.parts.tokenizer.manifest,
            data=self.parts.data.manifest,
            probes={name: probe.fact() for name, probe in probes.items()},
            provenance={"environment": self.environment, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
            files={self.layout.resolved.name: FileRecord.of(self.layout.resolved)},
        )
        manifest.save(self.layout.path)
        return manifest

    def _step(self, step: int, made: Batch, progress: Progress) -> None:
        cfg = self.cfg
        self.check(made, step)
        self.state, telemetry = train_step(self.state, put_batch(made, cfg, self.mesh))
        record = record_of(telemetry, labels_bytes=label_bytes(made.labels, made.loss_mask, self.parts.tokenizer.byte_lengths))
        step += 1
        last = step == cfg.train.steps
        validation = self._validate(step, progress) if last or step % cfg.eval.every == 0 else None
        if validation is not None:
            record["validation"] = {k: number(v) if isinstance(v, float) else v for k, v in validation._asdict().items()}
        record["batch_crc"] = batch_crc(made)
        self.telemetry.append(record)
        progress.step(record)
        if record["skipped"]:
            self.event("skipped", step=step, nonfinite=record["nonfinite"])
            if record["skipped"] >= cfg.train.max_skipped:
                raise ContractError(
                    "step",
                    artifact=f"{self.layout.telemetry} line {step}",
                    expected=f"fewer than {cfg.train.max_skipped} steps in a row without a finite gradient",
                    found=f"{record['skipped']}, the last one in {record['nonfinite'] or 'the loss'}",
                    remedy=f"The last durable step is {self.store.latest()}; look at the telemetry, lower --optim.lr.",
                )
        self.store.poll()
        if last or step % cfg.checkpoint.every == 0:
            self._save(step, validation)

    def _validate(self, step: int, progress: Progress) -> Validation:
        began = time.monotonic()
        validation = validate(self.state.params, self.parts, self.mesh)
        self.event("validation", step=step, seconds=time.monotonic() - began, **validation._asdict())
        progress.note(f"step {step}: validation loss {validation.loss:.4f}, {validation.bits_per_byte:.4f} bits per byte")
        return validation

    def _save(self, step: int, validation: Validation | None) -> None:
        began = time.monotonic()
        self.telemetry.sync()
        assert self.manifest is not None
        facts = {
            "config_fingerprint": config_fingerprint(self.cfg),
            "spec_sha256": self.model.facts["spec_sha256"],
            "data_cursor": step,
            "telemetry": self.telemetry.mark._asdict(),
            "environment": self.environment,
        }
        parents = {
            "tokenizer": self.parts.tokenizer.fingerprint,
            "data": self.parts.data.manifest.fingerprint,
            "model": self.model.fingerprint,
            "run": self.manifest.fingerprint,
        }
        metric = validation.loss if validation is not None and np.isfinite(validation.loss) else None
        provenance = {"events": self.events.mark._asdict()}  # with times in it: no part of the fingerprint
        self.store.save(self.state, step, facts=facts, parents=parents, metric=metric, provenance=provenance)
        self.event("save", step=step, seconds=time.monotonic() - began)
