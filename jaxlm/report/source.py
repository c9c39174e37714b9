"""A run as a page is made of it: its config, its devices, its logs as far as they were read."""

from __future__ import annotations

import os
from pathlib import Path

from jaxlm.config.load import read_resolved
from jaxlm.contract import ContractError, Finding, InputError, Manifest
from jaxlm.report.history import History
from jaxlm.report.throughput import hardware_from, peak_flops, step_flops
from jaxlm.run import Layout
from jaxlm.run.logs import damaged_logs
from jaxlm.scaling import Hardware


class Source:
    """One run. `read` takes what its logs have gained. damaged: what `verify` found of them.

    hardware: a row of `jaxlm.scaling.HARDWARE` for MFU; by default that of the devices which the run's manifest names.
    Raises InputError where `path` is no run, ContractError where its config is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], hardware: Hardware | None = None):
        self.path = Path(path)
        self.path = self.path if self.path.name.strip(".") else self.path.resolve()
        layout = Layout(self.path)
        if not layout.resolved.is_file():
            raise InputError(f"{path}: expected a run directory, found none there; `jaxlm train CONFIG` makes one")
        self.layout, self.name, self.config = layout, self.path.name, read_resolved(layout.resolved)
        self.device = _device(layout)
        self.hardware = hardware or hardware_from(self.device)
        peak = peak_flops(self.config, self.hardware) if self.hardware else None
        flops = step_flops(self.config) if self.hardware else 0.0
        self.damaged: list[Finding] = []
        self.history = History(self.path, tokens_per_step=self.config.tokens_per_step, step_flops=flops, peak=peak)

    @property
    def state(self) -> str:
        """Whether the run trains now, is done, or stopped before."""
        if self.layout.in_use():
            return "training"
        return "finished" if self.history.steps >= self.config.train.steps else f"stopped at step {self.history.steps:,}"

    def read(self) -> None:
        """Read on, to the ends of both logs."""
        self.history.read()

    def verify(self) -> None:
        """Ask both logs, whole, for damage: for a page that is made once, since it takes as long as to read them."""
        self.damaged = damaged_logs(self.layout)


def _device(layout: Layout) -> str:
    """What jax calls the devices of the run; empty where its manifest cannot say. The chain shows why."""
    try:
        environment = Manifest.load(layout.path, "run").provenance.get("environment", {})
    except (ContractError, InputError):
        return ""
    return str(environment.get("device_kind", ""))
