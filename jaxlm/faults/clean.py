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

from jaxlm.faults.ground import Ground, quiet_fit
from jaxlm.run import Run, audit
from jaxlm.watch import read_log

STEPS = 600


@dataclass(frozen=True)
class Clean:
    """A clean run. alarms: detector and step of each; broken: contracts that `jaxlm check` finds broken."""

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


def clean_run(kind: str, seed: int, folder: Path) -> Clean:
    """Train a clean run of a kind in `CLEAN`, and list what alarmed. seed: of weights, order and dropout."""
    path = folder / f"clean-{kind}-{seed}"
    shutil.rmtree(path, ignore_errors=True)
    ground = Ground(folder, 0)
    changes = {**ground.parts(), **CLEAN[kind], "train.steps": STEPS, "train.seed": seed + 1000, "data.order_seed": seed + 1000}
    with _quiet():
        run = quiet_fit(ground.config(changes), path)
        found = Clean(kind, seed, STEPS, _alarms(run), [finding.contract for finding in audit(path) if not finding.kept])
    shutil.rmtree(path, ignore_errors=True)
    return found


def _alarms(run: Run) -> list[list[Any]]:
    events = [event for event, _ in read_log(run.layout.events)]
    return [[event["detector"], event["step"]] for event in events if event["event"] == "alarm"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield
