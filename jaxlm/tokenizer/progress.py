"""How far a long piece of work is, on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

PAUSE = 0.1  # seconds between two updates: a stage may tell of tens of thousands of steps


class Progress:
    """Bars on standard error, one for each stage; silent unless `shown`, and where standard error is no terminal."""

    def __init__(self, shown: bool):
        self._bars: Any = None
        self._show: Callable[[], None] = lambda: None  # brings the bar of the present stage up to date
        if shown:
            from rich import progress
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(),
                    progress.TextColumn("{task.fields[done]}"),
                    progress.TimeElapsedColumn(),
                    progress.TimeRemainingColumn(),
                )
                self._bars = progress.Progress(*columns, console=console)

    def stage(self, name: str, unit: str, *, total: int = 0, scale: int = 1) -> Callable[[int], None]:
        """Begin a stage; returns a function that is told of every bit of work done. total: work in all, 0: not known."""
        if self._bars is None:
            return lambda amount: None
        self._show()
        task = self._bars.add_task(name, total=total or None, done="")
        of = f" of {total // scale:,}" if total else ""
        done, shown_at = 0, 0.0
        self._show = lambda: self._bars.update(task, completed=done, done=f"{done // scale:,}{of} {unit}")

        def advance(amount: int) -> None:
            nonlocal done, shown_at
            done += amount
            if time.monotonic() - shown_at > PAUSE:
                self._show()
                shown_at = time.monotonic()

        return advance

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._show()
            self._bars.stop()
