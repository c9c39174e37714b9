"""Runs in which nothing is wrong: several sizes, precisions and meshes, and changes that are no faults.

Whatever alarms in them is a false alarm.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import build_shards
from jaxlm.faults.ground import Ground, quiet_fit, stopped_at
from jaxlm.faults.planting import patched
from jaxlm.run import Run, audit
from jaxlm.tokenizer import Tokenizer
from jaxlm.train import fit
from jaxlm.watch import read_log

STEPS = 600
CHANGED = 300  # the step after which a benign change is made


@dataclass(frozen=True)
class Clean:
    """A clean run. steps: that were taken. alarms: detector and step of each; broken: contracts and probes that refused it, and
    those that `jaxlm check` finds broken."""

    kind: str
    seed: int
    steps: int
    alarms: list[list[Any]]
    broken: list[str]

    def words(self) -> str:
        """One line."""
        said = ", ".join(f"{name} at step {step}" for name, step in self.alarms) or "no alarm"
        return f"{self.kind}, seed {self.seed}, {self.steps} steps: {said}{''.join(f', {name} broken' for name in self.broken)}"


def _kind(**fields: Any) -> Mapping[str, Any]:
    return MappingProxyType({name.replace("__", "."): value for name, value in fields.items()})


CLEAN: dict[str, Mapping[str, Any]] = {
    "small": _kind(),
    "bfloat16": _kind(train__precision="bfloat16"),
    "wide": _kind(model__d_model=64, model__n_layers=2, train__batch_size=8, optim__lr=2e-3),
    "deep": _kind(model__n_layers=6, optim__lr=2e-3),
    "float16": _kind(train__precision="float16"),
    "post_norm": _kind(model__norm="post", optim__lr=1e-3),
    "two_devices": _kind(mesh__data=2, mesh__rules="dp"),
    "dropout": _kind(model__dropout=0.1),
    "warmup_stable_decay": _kind(optim__schedule="wsd"),
}
"""Configs of clean runs, as changes of the small one."""


BENIGN: dict[str, tuple[str, Mapping[str, Any]]] = {
    "pause": ("", _kind()),
    "mesh change": ("", _kind(mesh__data=2, mesh__rules="dp")),
    "declared warm restart": ("warm restart", _kind(optim__lr=2e-3, optim__warmup_steps=40, optim__schedule_from=CHANGED)),
    "declared batch size": ("batch size", _kind(train__batch_size=8)),
    "declared mixture": ("mixture", _kind()),
}
"""Changes in the middle of a run that are no faults: what is declared, and the fields that are others from then on."""


def clean_run(kind: str, seed: int, folder: Path) -> Clean:
    """Train a clean run of a kind in `CLEAN` or `BENIGN`, and list what alarmed. seed: of weights, order and dropout."""
    path = folder / f"clean-{kind.replace(' ', '-')}-{seed}"
    shutil.rmtree(path, ignore_errors=True)
    broken: list[str] = []
    with _quiet():
        try:
            _trained(kind, seed, Ground(folder, 0), path)
        except ContractError as error:
            broken.append(error.contract)
        found = Clean(kind, seed, 0, [], broken)
        if (path / "manifest.json").is_file():  # there was a run, refused or not
            run = Run.load(path)
            broken += [finding.contract for finding in audit(path) if not finding.kept]
            found = Clean(kind, seed, len(run.telemetry()), _alarms(run), broken)
    shutil.rmtree(path, ignore_errors=True)
    return found


def _trained(kind: str, seed: int, ground: Ground, path: Path) -> None:
    seeds = {"train.steps": STEPS, "train.seed": seed + 1000, "data.order_seed": seed + 1000}
    changes = {**ground.parts(), **seeds, **CLEAN.get(kind, {})}
    if kind not in BENIGN:
        quiet_fit(ground.config(changes), path)
        return
    declared, fields = BENIGN[kind]
    with patched([stopped_at(CHANGED)]):
        quiet_fit(ground.config(changes), path)
    if declared == "mixture":
        shards = ground.folder / f"mixture-{seed}"
        if not shards.exists():
            build_shards(DataConfig(max_bytes=600_000), Tokenizer.load(ground.whole / "tokenizer"), shards)
        fields = {"data.path": str(shards)}
    fit(ground.config({**changes, **fields}), out=path, declare=declared, say=lambda line: None)


def _alarms(run: Run) -> list[list[Any]]:
    events = [event for event, _ in read_log(run.layout.events)]
    return [[event["detector"], event["step"]] for event in events if event["event"] == "alarm"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield
