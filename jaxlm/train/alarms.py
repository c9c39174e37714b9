"""The detectors over a run while it is trained, and what is done about what they find.

Every alarm is an event and a line; the step gets a bundle of the flight recorder, as far as there is room. A detector that
`watch.stop_at` names ends the run. What the detectors know is saved with every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, InputError
from jaxlm.data import Batch
from jaxlm.parallel import processes
from jaxlm.run import Layout
from jaxlm.train.recorder import Recorder
from jaxlm.train.state import TrainState
from jaxlm.watch.detect import BUDGETS, Alarm, bank, expected_of, loaded, observe, saved

RING = 64  # steps before an alarm whose telemetry goes into its bundle

_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Alarms:
    """event: writes one line of the event log. say: takes a line for a person."""

    def __init__(self, cfg: RunConfig, layout: Layout, *, event: Callable[..., None], say: Callable[[str], None]):
        """Raises InputError for a detector in `watch.stop_at` that there is none of."""
        self.cfg, self.layout, self._event, self.say = cfg, layout, event, say
        self.expected, self._bank = expected_of(cfg), bank()
        self.recorder = Recorder(layout.bundles, ring=RING, keep=cfg.watch.bundles)
        self.stop_at = tuple(name.strip() for name in cfg.watch.stop_at.split(",") if name.strip())
        for name in self.stop_at:
            if name not in BUDGETS:
                raise InputError(f"--watch.stop-at: expected names of {', '.join(BUDGETS)}, found {name}")

    def saved(self) -> dict[str, Any]:
        """The detectors as they stand, as JSON, for a checkpoint."""
        return saved(self._bank)

    def go_on(self, found: Mapping[str, Any] | None) -> None:
        """Let the detectors stand where they stood when `saved` gave this; None begins them anew, as another version does."""
        try:
            self._bank = bank() if found is None else loaded(found)
        except (KeyError, TypeError, ValueError) as error:
            self._bank = bank()
            self.say(f"  the detectors of the checkpoint are not those of this version ({error}); they begin anew")

    def began(self, state: TrainState) -> dict[str, Any]:
        """What of a state changes although nothing is updated: to be asked for before the step, whose state is donated."""
        return dict(_copied({"step": state.step, "loss_scale": state.loss_scale, "skipped": state.skipped}))

    def event(self, record: Mapping[str, Any]) -> None:
        """Take in an event: the pace, a program compiled again, a declared change. Raises as `step` does."""
        self._bank, found = observe(self._bank, record, self.expected)
        self._tell(found, None)

    def step(
        self,
        record: Mapping[str, Any],
        *,
        batch: Batch,
        state: TrainState,
        began: Mapping[str, Any],
        parents: Mapping[str, str],
        checkpoint: int | None,
    ) -> None:
        """Take in the record of a step. batch: as it was fed. state: after it. began: what `began` gave before it. parents: of
        a checkpoint. checkpoint: the newest step saved.

        Raises ContractError for an alarm of a detector that ends the run.
        """
        self._bank, found = observe(self._bank, record, self.expected)
        self.recorder.step(record)
        if not found:
            return
        self._tell(found, self._bundle(record, found, batch, state, began, parents, checkpoint))

    def _bundle(
        self,
        record: Mapping[str, Any],
        found: list[Alarm],
        batch: Batch,
        state: TrainState,
        began: Mapping[str, Any],
        parents: Mapping[str, str],
        checkpoint: int | None,
    ) -> str | None:
        """Where the bundle lies, seen from the run; None where there is none. A step that was skipped has left its state."""
        if processes.several() or not self.cfg.watch.bundles:
            return None
        left = not record["finite"] and record["nonfinite"] != "the update"
        before = dataclasses.replace(state, **began) if left else None
        path = self.recorder.bundle(
            record["step"],
            [alarm.as_json() for alarm in found],
            batch=batch,
            parents=parents,
            state=before,
            checkpoint=checkpoint,
        )
        return None if path is None else path.relative_to(self.layout.path).as_posix()

    def _tell(self, found: list[Alarm], bundle: str | None) -> None:
        """Log alarms, and raise ContractError at the first of a detector that ends the run."""
        for alarm in found:
            self._event("alarm", **alarm.as_json(), bundle=bundle)
            self.say(f"ALARM {alarm.words()}")
        for alarm in found:
            if alarm.detector in self.stop_at:
                raise ContractError(
                    alarm.detector,
                    artifact=f"{self.layout.path}, step {alarm.step} ({alarm.what})",
                    expected=alarm.expected,
                    found=alarm.found,
                    remedy=f"`jaxlm replay {self.layout.path} --step {alarm.step}` looks into the step.",
                )
