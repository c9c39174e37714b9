"""A run directory, its parts loaded when asked for and checked when loaded.

What evaluation, generation and serving start from: `Run.load("runs/quickstart").params`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.load import config_fingerprint, read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, InputError, Manifest, check
from jaxlm.data import ShardSet, open_shards
from jaxlm.model import Params, abstract_params, model_manifest
from jaxlm.run.history import History
from jaxlm.run.layout import Layout
from jaxlm.run.lineage import before, parent_findings
from jaxlm.tokenizer import Tokenizer
from jaxlm.watch import read_log

KIND = "run"


def run_manifest(cfg: RunConfig, *, tokenizer: Manifest, data: Manifest, probes: Any, provenance: Any, files: Any) -> Manifest:
    """The run contract: which config, model, tokenizer and data, and what the static probes found.

    The model's manifest is held in full, since a model has no directory of its own.
    """
    facts = {
        "config_fingerprint": config_fingerprint(cfg),
        "model": model_manifest(cfg.model, tokenizer).to_json(),
        "probes": probes,
    }
    parents = {"tokenizer": tokenizer.fingerprint, "data": data.fingerprint}
    return Manifest(kind=KIND, facts=facts, parents=parents, files=files, provenance=provenance)


class Run:
    """A run directory. `Run.load(path)` reads its manifest and config; every other part is loaded on first use.

    step: the checkpoint that `params` takes; None is the newest. Loading raises ContractError where a part differs from
    what the run promised, InputError where there is no such run or checkpoint.
    """

    def __init__(self, path: Path, manifest: Manifest, config: RunConfig, step: int | None = None):
        self.layout = Layout(path)
        self.path, self.manifest, self.config = path, manifest, config
        self._step = step

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, step: int | None = None) -> Run:
        """Open a run directory."""
        path = Path(path)
        layout = Layout(path)
        if not layout.manifest.is_file():
            begun = layout.resolved.is_file()
            found = "one whose training has not begun" if begun else "none there"
            mend = f"`jaxlm train {path}` goes on" if begun else "`jaxlm train CONFIG` or `jaxlm quickstart` makes one"
            raise InputError(f"{path}: expected a run directory, found {found}; {mend}")
        manifest = Manifest.load(path, KIND)
        manifest.require_files(path)
        config = read_resolved(layout.resolved)
        found = config_fingerprint(config)
        if found != manifest.facts["config_fingerprint"]:
            raise ContractError(
                KIND,
                artifact=layout.resolved,
                expected=f"config {manifest.facts['config_fingerprint']}",
                found=f"config {found}",
                remedy="Restore resolved.json from a copy.",
            )
        return cls(path, manifest, config, step)

    def at(self, step: int) -> Run:
        """The run as it was when it did step number `step`, from 1: itself, or with what a declared change replaced since."""
        found = before(self.layout, self.manifest, step)
        return self if found is None else Run(self.path, *found, self._step)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, compared with the run."""
        tokenizer = Tokenizer.load(self.layout.tokenizer)
        check(tokenizer.manifest, self.manifest)
        check(tokenizer.manifest, self.model)
        return tokenizer

    @functools.cached_property
    def data(self) -> ShardSet:
        """The run's shards, compared with its tokenizer and the run."""
        data = open_shards(self.layout.data(self.config))
        check(self.tokenizer.manifest, data.manifest)
        check(data.manifest, self.manifest)
        check(data.manifest, self.model)
        return data

    @functools.cached_property
    def model(self) -> Manifest:
        """The model contract of the run; ContractError where today's code would build another model from its config."""
        recorded = Manifest.from_json(self.manifest.facts["model"], artifact=self.layout.manifest)
        tokenizer = Manifest.load(self.layout.tokenizer, "tokenizer")
        check(tokenizer, recorded)
        now = model_manifest(self.config.model, tokenizer)
        if now.fingerprint != recorded.fingerprint:
            differing = sorted(k for k in now.facts if now.facts[k] != recorded.facts.get(k))
            raise ContractError(
                "model",
                artifact=self.layout.manifest,
                expected=f"model {recorded.fingerprint}",
                found=f"{now.fingerprint} (they differ in {', '.join(differing)})",
                remedy="Use the version of jaxlm that the run was made with.",
            )
        return recorded

    @functools.cached_property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints, for reading."""
        cfg = self.config.checkpoint
        return CheckpointStore(self.layout.checkpoints, keep_last=cfg.keep_last, keep_best=cfg.keep_best)

    @functools.cached_property
    def step(self) -> int:
        """The step of the checkpoint in use: the newest when first asked for, unless the run was loaded with another.

        Raises InputError where there is none.
        """
        steps = self.checkpoints.committed()
        if not steps:
            raise InputError(f"{self.path}: expected a checkpoint, found none; `jaxlm train {self.path}` goes on with the run")
        if self._step is None:
            return steps[-1]
        if self._step not in steps:
            there = ", ".join(map(str, steps))
            raise InputError(f"--step: expected a checkpoint of {self.path}, which has {there}, found {self._step}")
        return self._step

    @functools.cached_property
    def checkpoint(self) -> Manifest:
        """The manifest of the checkpoint in use, compared with model, tokenizer, data and run: those that its step was trained
        under."""
        manifest = self.checkpoints.manifest(self.step)
        for upstream in (self.model, self.tokenizer.manifest):
            check(upstream, manifest)
        for finding in parent_findings(self.manifest, manifest, self.step, self.checkpoints.path(self.step)):
            if not finding.kept:
                raise finding.error()
        return manifest

    @functools.cached_property
    def params(self) -> Params:
        """The parameters of the checkpoint in use, on the default device, each compared with its digest."""
        step = self.checkpoint.facts["step"]
        with jax.ensure_compile_time_eval():  # arrays, also where they are first asked for inside of a traced function
            params, _ = self.checkpoints.restore(abstract_params(self.config.model), step, below="params")
        return params

    def telemetry(self) -> list[dict[str, Any]]:
        """One record for every step, up to the first line that breaks the chain."""
        return [record for record, _ in read_log(self.layout.telemetry)]

    def events(self) -> list[dict[str, Any]]:
        """Validations, saves, resumes and times, in order."""
        return [record for record, _ in read_log(self.layout.events)]

    def history(self) -> History:
        """What its events make of its batches."""
        return History.of(self.events())
