"""The watchdog: a thread that ends a process which is alive and stuck.

A process that waits for ever in a collective, on a disk or in a driver looks alive to everyone. What a run does is cut into
pieces of work, each with a time limit (`watch.step_timeout`); past it the watchdog says which piece it was in which process,
prints the stacks of all threads, and ends the process with the status `STUCK`, whatever the main thread waits for.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from jaxlm.parallel import processes
from jaxlm.parallel.leaving import leave, stacks

STUCK = 5  # exit status: a step, a validation or a save took longer than watch.step_timeout
FIRST = 5  # times the limit for the first piece of each kind: it compiles


class Watchdog:
    """Use it as a context manager around the work. seconds: the limit of a piece of work; 0: no limit, and no thread."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._known: set[str] = set()
        self._piece: tuple[str, float, float] | None = None  # what, since when, for how long; one object: it is set at once
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True) if seconds > 0 else None

    def at(self, kind: str, number: int | None = None) -> None:
        """A piece of work begins, and the one before it has ended. kind: `step`, say. number: which."""
        limit = self.seconds * (1 if kind in self._known else FIRST)
        self._known.add(kind)
        self._piece = (kind if number is None else f"{kind} {number}", time.monotonic(), limit)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if self._piece is None:
                continue
            what, since, limit = self._piece
            if time.monotonic() - since > limit:
                where = f" of process {processes.index()} of {processes.count()}" if processes.several() else ""
                before = f"jaxlm: {what}{where} is stuck; the stacks of its threads:\n{stacks()}"
                message = f"error: {what}{where}: expected its end within {limit:g} s (--watch.step-timeout), found none."
                leave(STUCK, f"{message} Nothing that was saved is lost; the same command goes on.", before=before)

    def __enter__(self) -> Watchdog:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
