"""What a person sees while a run goes on: one live line on a terminal, a printed line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxlm.config.schema import WatchConfig

WINDOW = 32  # steps over which the speed is averaged


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m07s` or `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """The live line of a run: loss, bits per byte, gradient norm, tokens/s, time left.

    On a terminal the line is redrawn in place; elsewhere (or with `live=False`) a line is printed every `print_every` steps
    and at the end. Everything goes to `stream`, standard error by default, so that standard output stays free for results.
    """

    def __init__(self, *, steps: int, tokens_per_step: int, watch: WatchConfig, stream: TextIO | None = None):
        self.steps, self.tokens_per_step, self.watch = steps, tokens_per_step, watch
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live = Live(console=self.console, refresh_per_second=8, transient=True) if self.drawn else None
        self._times: deque[float] = deque(maxlen=WINDOW + 1)

    @property
    def drawn(self) -> bool:
        """Whether the line is redrawn in place."""
        return self.watch.live and self.console.is_terminal

    def tokens_per_second(self) -> float:
        """Positions trained on in a second, over the last `WINDOW` steps; 0 before the second step."""
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) * self.tokens_per_step / max(self._times[-1] - self._times[0], 1e-9)

    def start(self, step: int) -> None:
        """Begin, at `step` steps done. The first step compiles, so the speed is measured from its end on."""
        self._times.clear()
        if self._live is not None:
            self._live.start()
            self._live.update(Text(f"{step}/{self.steps}  compiling the step", no_wrap=True, overflow="ellipsis"))

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step from its telemetry record."""
        self._times.append(time.monotonic())
        text = self.words(record)
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif record["step"] % self.watch.print_every == 0 or record["step"] == self.steps:
            self.console.print(text)

    def words(self, record: Mapping[str, Any]) -> str:
        """The line, at most 80 columns for up to a million steps."""
        rate = self.tokens_per_second()
        left = (self.steps - record["step"]) * self.tokens_per_step / rate if rate else 0.0
        bits = record["bits_per_byte"]
        parts = [
            f"{record['step']}/{self.steps}",
            f"loss {_shown(record['loss'], '.3f')}",
            f"bits/byte {_shown(bits, '.3f')}",
            f"grad {_shown(record['grad_norm'], '.3g')}",
            f"{_thousands(rate)} tok/s",
            f"ETA {duration(left)}",
        ]
        if record["skipped"]:
            parts.append(f"skipped {record['skipped']}")
        return "  ".join(parts)

    def note(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        self.console.print(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()


def _thousands(value: float) -> str:
    """A rate in three digits or so: 950, 12.3k, 4.56M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.3g}k" if value < 999.5e3 else f"{value / 1e6:.3g}M"


def _shown(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, float) else str(value)
