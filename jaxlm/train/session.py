"""One process's share of a run: the parts, the state, the logs and the checkpoints that the loop works on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxlm.checkpoint import CheckpointStore, differences, require_restored
from jaxlm.config.load import config_fingerprint
from jaxlm.contract import ContractError, FileRecord, InputError, Manifest, check
from jaxlm.data import Batch, TokenStream, batch, batch_crc, check_batch, check_supervised
from jaxlm.model import model_manifest
from jaxlm.parallel import processes
from jaxlm.run import History, Layout, run_manifest
from jaxlm.run.history import cursor_of
from jaxlm.run.lineage import first_step, parents_at
from jaxlm.train.alarms import Alarms
from jaxlm.train.declared import ABOUT, Change, change_of, make
from jaxlm.train.exports import sinks_of
from jaxlm.train.guard import Guard
from jaxlm.train.pace import Pace
from jaxlm.train.prepare import Parts, Say
from jaxlm.train.probes import Probe
from jaxlm.train.reread import Reread
from jaxlm.train.rows import BatchFacts, batch_facts
from jaxlm.train.state import TrainState, abstract_state, batch_rows, environment_of, initial_state, put_batch
from jaxlm.train.stop import StopRequest
from jaxlm.train.validate import Validation
from jaxlm.train.watchdog import Watchdog
from jaxlm.watch import ChainedLog, Mark, number
from jaxlm.watch.figures import Sink
from jaxlm.watch.sinks import START, last_record, read_log


class Session:
    """A run as one process holds it while it trains, opened where the run stands: at its newest checkpoint, or at step 0."""

    def __init__(
        self,
        parts: Parts,
        layout: Layout,
        mesh: Mesh,
        say: Say,
        allow_older: bool,
        *,
        stop: StopRequest,
        watchdog: Watchdog,
        declare: str = "",
    ):
        """declare: a change that the run is to go on with, or nothing. In a cluster all processes open the run together, and
        process 0 alone writes its logs."""
        self.stop, self.watchdog = stop, watchdog
        self.parts, self.cfg, self.layout, self.mesh, self.say = parts, parts.cfg, layout, mesh, say
        cfg = self.cfg
        self.environment = environment_of(cfg, mesh, grad_accum=cfg.train.grad_accum)
        self.guard = Guard(cfg, layout.path, deterministic=self.environment["deterministic"], event=self.event)
        self.sinks: list[Sink] = []
        self.alarms = Alarms(cfg, layout, event=self.event, say=say)
        self.pace = Pace(cfg.watch.pace_every, self.event)
        self.model = model_manifest(cfg.model, parts.tokenizer.manifest)
        keep = cfg.checkpoint
        self.store = CheckpointStore(
            layout.checkpoints, keep_last=keep.keep_last, keep_best=keep.keep_best, asynchronous=keep.asynchronous, clean=True
        )
        self.rows = batch_rows(cfg, mesh)
        self.reread = Reread(parts.data, cfg)
        self.manifest = Manifest.load(layout.path, "run") if layout.manifest.is_file() else None
        self.differing: list[str] = []
        change = self._declared(declare) if ABOUT.get(declare) else None
        if change is not None:
            self.manifest = change.manifest
        if self.manifest is not None:
            self._require_same_parts(self.manifest)
        self.relaid: dict[str, Any] | None = None
        self.saved: int | None = None  # the newest step that was given to the store, or restored from it
        self.norms: dict[str, Any] = {}  # of the parameters, as the last step reported them; none before there was one
        self.history = History.of(record for record, _ in read_log(layout.events))
        if processes.primary():
            self._forget_undone()
        processes.barrier("undone")
        self.state, mark = self.standing(allow_older)
        self._require_one_directory()
        self.events = _log(layout.events, None, "a whole log")
        self.telemetry = _log(layout.telemetry, mark, f"the {mark.lines} lines that the checkpoint has seen")
        if change is not None:
            index = self.history.after(change.event).index(change.event["step"])
            self._batch(index, None, parts.data.train, cfg.model.context_length)  # raises where there can be no such batch
            make(self, change)
        elif declare:
            self.event("declared", step=self.saved or 0, what=declare)
        self.sinks = sinks_of(cfg, layout, step=mark.lines, durable=self.store.latest)

    def _declared(self, what: str) -> Change:
        """The change to make, at the newest checkpoint. Raises InputError where there is none."""
        if (step := self.store.latest()) is None:
            raise InputError(f"{self.layout.path}: expected a checkpoint to go on from with a declared {what}, found none")
        return change_of(what, self.cfg, self.layout, data=self.parts.data.manifest, step=step)

    def standing(self, allow_older: bool = False) -> tuple[TrainState, Mark]:
        """The state of the newest checkpoint, and the mark of the telemetry that goes with it; those of the beginning where
        there is none."""
        self.saved, self.norms = None, {}
        if not self.store.committed():
            self._require_not_behind(0)
            self.alarms.go_on(None)
            return initial_state(self.cfg, self.mesh), Mark(0, START)
        return self._restored(allow_older)

    def require_as_saved(self) -> None:
        """Raise ContractError where the state is not bit by bit that of the checkpoint that the run goes on from.

        Asked last, when the next thing is a step: whatever was done to the state since it was read, is seen. In a cluster no
        process holds all of it.
        """
        if self.saved is not None and not processes.several():
            where = self.store.path(self.saved)
            require_restored(self.state, self.store.manifest(self.saved), artifact=f"the state restored from {where}")

    def _forget_undone(self) -> None:
        """Remove the checkpoints that a rollback took back and was killed before it could remove them."""
        for step in self.store.steps():
            if self.history.undone(step, self.store.manifest(step).facts["data_cursor"]):
                self.say(f"removing {self.store.path(step)}, which a rollback took back")
                self.store.remove(step)

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

    def _require_one_directory(self) -> None:
        """Raise InputError where the processes of a cluster do not see the same checkpoints."""
        found = processes.gathered("restored", str(self.saved))
        if len(set(found)) > 1:
            steps = ", ".join(f"{step} in process {index}" for index, step in enumerate(found))
            raise InputError(
                f"{self.layout.path}: expected a directory that all processes share, found as its newest step {steps}; "
                "put the run on a file system that all machines mount"
            )

    def _restored(self, allow_older: bool) -> tuple[TrainState, Mark]:
        like = abstract_state(self.cfg, self.mesh)
        state, manifest = self.store.restore(like, allow_older=allow_older, expect=self._expected)
        self.differing = differences(manifest.facts["environment"], self.environment)
        self.saved = manifest.facts["step"]
        found = cursor_of(manifest, self.history, self.store.path(self.saved))
        if not found.kept:
            raise found.error()
        if (before := manifest.facts["environment"]["mesh"]) != self.environment["mesh"]:
            self.relaid = {"saved": before, "now": self.environment["mesh"]}
        self.alarms.go_on(manifest.provenance.get("detectors"))
        for change in self.history.declared:
            if change["step"] == self.saved:  # declared after the checkpoint was saved
                self.alarms.event(change)
        self.say(f"resuming at step {manifest.facts['step']} from {self.store.path(manifest.facts['step'])}")
        for line in self.differing:
            self.say(f"  another environment, so equal bits are not promised: {line}")
        if not self.environment["deterministic"]:
            self.say("  sums of this device come in any order, so equal bits are not promised; set")
            self.say("  XLA_FLAGS=--xla_gpu_deterministic_ops=true from the first step on")
        return state, Mark(**manifest.facts["telemetry"])

    def _expected(self, step: int) -> dict[str, str]:
        """The parents that a checkpoint of `step` steps has. Raises ContractError for steps behind a declared change."""
        self._require_not_behind(step)
        tokenizer = {"tokenizer": self.parts.tokenizer.fingerprint}
        if self.manifest is None:
            return {**tokenizer, "data": self.parts.data.manifest.fingerprint}
        return {**tokenizer, **parents_at(self.manifest, step)}

    def _require_not_behind(self, step: int) -> None:
        """Raise ContractError where a run would go on from `step` steps done, behind a declared change."""
        if self.manifest is not None and step < (least := first_step(self.manifest)):
            raise ContractError(
                "run",
                artifact=self.store.path(step),
                expected=f"a checkpoint of step {least} or later, at which a change of the numbers was declared",
                found=f"step {step}",
                remedy="Restore a later checkpoint from a copy: the steps in between would be others than they were.",
            )

    def batch(self, step: int) -> Batch:
        """The batch of the step that follows `step` steps done: a pure function of config, data and the run's rollbacks."""
        return self._batch(self.history.index(step), None, self.parts.data.train, self.cfg.model.context_length)

    def share(self, step: int) -> Batch:
        """The rows of `batch` that this process needs: all of them, where it is the only one."""
        return self._batch(self.history.index(step), self.rows, self.parts.data.train, self.cfg.model.context_length)

    def first_ids(self, stream: TokenStream, step: int, rows: np.ndarray) -> np.ndarray:
        """The first ids of rows of `batch` without rollbacks, had the training split been `stream` and a row one token."""
        return np.asarray(self._batch(step, rows, stream, 1).tokens[:, 0])

    def require_same_batches(self) -> None:
        """Raise ContractError where the batch of the last step in the telemetry comes out as another one now.

        Process 0, which holds the log, makes that batch again, whole. Records from before batches had a CRC say nothing.
        """
        record = last_record(self.layout.telemetry) if processes.primary() and self.telemetry.mark.lines else None
        if record is None or record.get("batch_crc") is None:
            return
        if any(record["step"] <= change["step"] for change in self.history.declared):
            return  # its batch was made by other numbers
        found = batch_crc(self.batch(record["step"] - 1))
        if found != record["batch_crc"]:
            raise ContractError(
                "data",
                artifact=f"{self.layout.telemetry} line {self.telemetry.mark.lines}",
                expected=f"the batch of step {record['step']} again, CRC {record['batch_crc']:08x}",
                found=f"CRC {found:08x}",
                remedy="The order of the rows, the shards or the packing are others than before: a run that goes on would see "
                "other examples. Use the version of jaxlm that it was made with, or start a new run.",
            )

    def put(self, made: Batch) -> Batch:
        """A share on the devices, where with those of the other processes it is the batch."""
        return put_batch(made, self.cfg, self.mesh, rows=self.rows)

    def facts(self, made: Batch, step: int) -> BatchFacts:
        """What the telemetry says of the batch of which `made` is a share; all of it is checked that a share cannot tell."""
        cfg, data = self.cfg, self.parts.data.train
        examples = self.history.index(step) * cfg.train.batch_size + np.arange(cfg.train.batch_size)
        epochs = examples // data.rows(cfg.model.context_length)
        facts = batch_facts(made, self.parts.tokenizer.byte_lengths, cfg, self.mesh, rows=self.rows, epochs=epochs)
        check_supervised(facts.supervised, cfg.data.min_supervised, label=f"batch of step {step + 1}")
        return facts

    def _batch(self, step: int, rows: np.ndarray | None, stream: TokenStream, context_length: int) -> Batch:
        seed, batch_size = self.cfg.data.order_seed, self.cfg.train.batch_size
        return batch(stream, step=step, seed=seed, batch_size=batch_size, context_length=context_length, rows=rows)

    def check(self, made: Batch, step: int) -> None:
        """The batch contract, every step, of a batch or a share of one."""
        cfg, tokenizer = self.cfg, self.parts.tokenizer
        check_batch(
            made,
            vocab_size=cfg.model.vocab_size,
            context_length=cfg.model.context_length,
            min_supervised=cfg.data.min_supervised if self.rows is None else 0.0,
            borders=(tokenizer.eos_id, tokenizer.bos_id),
            label=f"batch of step {step + 1}",
        )

    def require_fed(self, made: Batch, step: int) -> None:
        """Raise ContractError where `made` is not what the shards hold at the places of the step after `step`."""
        size = self.cfg.train.batch_size
        examples = self.history.index(step) * size + (np.arange(size) if self.rows is None else self.rows)
        self.reread.require(made, examples, step=step, artifact=f"{self.layout.path}, batch of step {step + 1}")

    def record(self, record: Mapping[str, Any]) -> None:
        """One line in the telemetry, and wherever else the config sends it."""
        self.telemetry.append(record)
        self.norms = {f"params/{name}": np.asarray(norm, np.float64) for name, norm in record["param_norms"].items()}
        for sink in self.sinks:
            sink.write(record)

    def event(self, event: str, **fields: Any) -> None:
        """One line in the event log."""
        clean = {k: number(v) if isinstance(v, float) else v for k, v in fields.items()}
        record = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **clean}
        self.events.append(record)
        self.history = self.history.after(record)
        self.alarms.event(record)
        for sink in self.sinks:
            sink.event(record)

    @property
    def parents(self) -> dict[str, str]:
        """The fingerprints of what a checkpoint of this run is made from."""
        assert self.manifest is not None
        return {
            "tokenizer": self.parts.tokenizer.fingerprint,
            "data": self.parts.data.manifest.fingerprint,
            "model": self.model.fingerprint,
            "run": self.manifest.fingerprint,
        }

    # ---- what is promised and kept -------------------------------------------------------------------------------

    def promise(self, probes: dict[str, Probe]) -> Manifest:
        """Write the manifest of a run whose probes have passed."""
        manifest = run_manifest(
            self.cfg,
            tokenizer=self.parts.tokenizer.manifest,
            data=self.parts.data.manifest,
            probes={name: probe.fact() for name, probe in probes.items()},
            provenance={"environment": self.environment, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
            files={self.layout.resolved.name: FileRecord.of(self.layout.resolved)},
        )
        if processes.primary():
            manifest.save(self.layout.path)
        processes.barrier("promised")
        return manifest

    def save(self, step: int, validation: Validation | None) -> None:
        """Begin a checkpoint of the state, `step` steps done. validation: of this step, if there was one."""
        began = time.monotonic()
        self.guard.compare(self.state, step)
        self.telemetry.sync()
        facts = {
            "config_fingerprint": config_fingerprint(self.cfg),
            "spec_sha256": self.model.facts["spec_sha256"],
            "data_cursor": self.history.cursor(step),
            "telemetry": self.telemetry.mark._asdict(),
            "environment": self.environment,
        }
        metric = validation.loss if validation is not None and np.isfinite(validation.loss) else None
        # With times in it: no part of the fingerprint.
        provenance = {"events": self.events.mark._asdict(), "detectors": self.alarms.saved()}
        self.saved = step
        self.store.save(
            self.state, step, facts=facts, parents=self.parents, metric=metric, provenance=provenance, norms=self.norms
        )
        self.event("save", step=step, seconds=time.monotonic() - began, metric=metric, keep_best=self.store.keep_best)


class _Unwritten(ChainedLog):
    """The log of a process whose log another one writes."""

    def __init__(self, mark: Mark):
        self.mark = mark

    def append(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _log(path: Path, keep: Mark | None, expected: str) -> ChainedLog:
    """The log at `path`, opened to go on. Raises ContractError where it is damaged."""
    if not processes.primary():
        return _Unwritten(keep or Mark(0, START))
    try:
        return ChainedLog(path, keep=keep)
    except ValueError:
        remedy = "Restore it from a copy, or start a new run."
        raise ContractError("telemetry", artifact=path, expected=expected, found=_lines(path, keep), remedy=remedy) from None


def _lines(path: Path, keep: Mark | None) -> str:
    """What a damaged log holds instead of the lines that are to be kept, in words."""
    if not path.is_file():
        return "no such file"
    whole, lines = sum(1 for _ in read_log(path)), path.read_bytes().count(b"\n")
    if keep is not None and whole >= keep.lines:
        return "other lines"
    return f"a line {whole + 1} that does not continue the {whole} before it" if lines > whole else f"{whole} lines"
