"""How long steps take and how long the loop waits for batches: an event every few steps, for the report and the detectors."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """Sums over steps. The first one of a process compiles, and is left out. event: writes one line of the event log."""

    def __init__(self, every: int, event: Callable[..., None]):
        self.every, self._event = every, event
        self._first = True
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def step(self, step: int, *, seconds: float, waited: float) -> None:
        """Step number `step` has ended. seconds: from its batch to its figures, without validation and saves. waited: for the
        batch. The event holds the sums of the steps since the one before: `seconds` with `waited` in it."""
        if self._first or not self.every:
            self._first = False
            return
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds + waited, self._waited + waited
        if self._steps == self.every:
            self._event("pace", step=step, steps=self._steps, seconds=self._seconds, waited=self._waited)
            self._steps, self._seconds, self._waited = 0, 0.0, 0.0
