"""SIGTERM and Ctrl-C during training: finish the step, save, and stop; in a cluster all processes at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jaxlm.parallel.lookout import Lookout


class StopRequest:
    """While active, SIGTERM and SIGINT set `signal` instead of ending the process; a second SIGINT interrupts at once.

    Only the main thread can install handlers; elsewhere this does nothing and `signal` stays None. lookout: of a process in a
    cluster, in which a signal to any process stops all of them.
    """

    def __init__(self, lookout: Lookout | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._lookout = lookout
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._lookout is not None:
            self._lookout.ask(self.signal.name)

    def reached(self, step: int) -> bool:
        """Whether `step`, just done, is the last one. In a cluster that is so when all have agreed, and `signal` is then the
        one that they agreed on."""
        if self._lookout is None:
            return self.signal is not None
        name = self._lookout.reached(step)
        if name is not None:
            self.signal = signal.Signals[name]
        return name is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
