"""What stands guard over a run between its steps, beside the telemetry: nothing here changes a number.

Devices that hold different bits of what they should hold in common (`watch.replicas_every`, and before every checkpoint), a
step that gives other bits when it is computed again (`watch.recompute_every`), a loss scale that moves or has no room left,
and programs that are compiled again. The first two stop the run; no checkpoint is written from such a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.model import LossScale
from jaxlm.train.recompute import step_twice
from jaxlm.train.state import TrainState, policy
from jaxlm.train.step import train_step
from jaxlm.watch import Telemetry
from jaxlm.watch.recompiles import Recompilations
from jaxlm.watch.replicas import require_equal_replicas


class Guard:
    """Wraps the steps of one run.

    path: the run directory, as errors name it. deterministic: whether the device promises equal bits
    (`environment()["deterministic"]`). event: takes one line for the event log, `event(name, step=..., ...)`.
    """

    def __init__(self, cfg: RunConfig, path: Path, *, deterministic: bool, event: Callable[..., None]):
        self.cfg, self.path, self.deterministic, self.event = cfg, path, deterministic, event
        self._recompilations = Recompilations()
        self._compared = -1  # the last step after which the replicas were compared

    def step(self, state: TrainState, batch: Any, step: int) -> tuple[TrainState, Telemetry]:
        """Step number `step`, from 1; computed twice where its turn has come. Raises ContractError where that differs."""
        if self._compared < 0:
            self.compare(state, step - 1)
        if not self.twice(step):
            with self.phase("step", step, state=state, batch=batch):
                return train_step(state, batch)
        with self.phase("step computed twice", step, state=state, batch=batch), self._logged(step):
            return step_twice(state, batch, artifact=f"{self.path}, step {step}", deterministic=self.deterministic)

    def twice(self, step: int) -> bool:
        """Whether step number `step`, from 1, is one that is computed twice."""
        every = self.cfg.watch.recompute_every
        return bool(every) and step % every == 0

    @contextmanager
    def phase(self, name: str, step: int, **arguments: Any) -> Iterator[None]:
        """A block that every turn of the loop, or some, runs: it may compile the first time; later that is a warning and an
        event."""
        with self._recompilations.phase(name, **arguments) as lines:
            yield
        for line in lines:
            self.event("recompiled", step=step, phase=name, found=line)

    def after(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Look at the state after a step and at its telemetry record. Raises ContractError for replicas that drifted, and
        for a gradient that is not finite at the least loss scale."""
        step = record["step"]
        if policy(self.cfg).scales_loss:
            self._scale(float(state.loss_scale.scale), record)
        if self.cfg.watch.replicas_every and step % self.cfg.watch.replicas_every == 0:
            self.compare(state, step)

    def go_back(self) -> None:
        """The state is another one from here on: its replicas are compared before the next step."""
        self._compared = -1

    def compare(self, state: TrainState, step: int) -> None:
        """Require equal replicas of the state after `step` steps, once; what saves a state calls this first."""
        if self._compared == step:
            return
        with self.phase("comparison of replicas", step), self._logged(step):
            require_equal_replicas(state, artifact=f"{self.path} after step {step}")
        self._compared = step

    def _scale(self, scale: float, record: Mapping[str, Any]) -> None:
        """scale: of the next step; that of the step reported is in its record."""
        used = record["loss_scale"]
        if scale != used:
            self.event("loss_scale", step=record["step"], before=used, after=scale, finite=record["finite"])
        if not record["finite"] and used <= LossScale.FLOOR:
            raise ContractError(
                "loss_scale",
                artifact=f"{self.path}, step {record['step']}",
                expected=f"finite gradients at the least loss scale, {LossScale.FLOOR:g}",
                found=f"none in {record['nonfinite']}",
                remedy="Values leave the range of float16 (65504) whatever the scale: lower --optim.lr, or train with "
                "--train.precision bfloat16.",
            )

    @contextmanager
    def _logged(self, step: int) -> Iterator[None]:
        try:
            yield
        except ContractError as error:
            self.event(error.contract, step=step, artifact=error.artifact, found=error.found)
            raise
