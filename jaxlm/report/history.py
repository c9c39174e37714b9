"""What a run's logs say, gathered for a page: every figure as a series, and the events that a page shows.

Read once for a page that stays, or again and again while the run goes on: only what has come is read then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.report.series import CURVE, HEAT, Series
from jaxlm.run import Layout
from jaxlm.watch.figures import figures
from jaxlm.watch.tail import Tail

MARKS = 2000  # events of a kind that are kept: the first half of them, and the last ones
SAMPLES = 24  # samples that are kept, spread over the run


class Kept:
    """The first `most // 2` records and the last ones, and how many there were."""

    def __init__(self, most: int = MARKS):
        self.most, self.count = most, 0
        self._first: list[dict[str, Any]] = []
        self._last: deque[dict[str, Any]] = deque(maxlen=most - most // 2)

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, if need be in the place of an older one."""
        self.count += 1
        (self._first if len(self._first) < self.most // 2 else self._last).append(record)

    def all(self) -> list[dict[str, Any]]:
        """Those that are kept, in order."""
        return [*self._first, *self._last]


class Spread:
    """At most `most` records, evenly spread over all that came, the first and the last among them."""

    def __init__(self, most: int = SAMPLES):
        self.most, self.count, self._stride = most, 0, 1
        self._kept: list[dict[str, Any]] = []
        self._newest: dict[str, Any] | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record where the spacing says so; the spacing doubles when there is no room."""
        self._newest = record
        if self.count % self._stride == 0:
            self._kept.append(record)
            if len(self._kept) >= self.most:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self.count += 1

    def all(self) -> list[dict[str, Any]]:
        """Those that are kept, in order, and the newest."""
        last = [] if self._newest is None or (self._kept and self._kept[-1] is self._newest) else [self._newest]
        return [*self._kept, *last]


class History:
    """The logs of a run as far as they were read. `read` takes what has come since.

    curves, heats: series by the name of the figure. last: the newest record. alarms, resumed, skipped, samples: events.
    detectors: alarms by detector. broken: the logs in which a line breaks the chain, which are read no further.
    tokens_per_step: positions of a batch. step_flops: the model's FLOPs of a step; peak: FLOP/s of all devices together, None
    where it is not known, and so no MFU.
    """

    def __init__(self, path: Path, *, tokens_per_step: int, step_flops: float, peak: float | None):
        layout = Layout(path)
        self.tokens_per_step, self.step_flops, self.peak = tokens_per_step, step_flops, peak
        self._telemetry, self._events = Tail(layout.telemetry), Tail(layout.events)
        self._start_telemetry()
        self._start_events()

    def _start_telemetry(self) -> None:
        self.curves: dict[str, Series] = {}
        self.heats: dict[str, Series] = {}
        self.last: dict[str, Any] = {}
        self.steps = 0

    def _start_events(self) -> None:
        self.pace: dict[str, Series] = {}
        self.alarms, self.resumed, self.skipped, self.samples = Kept(), Kept(), Kept(), Spread()
        self.detectors: Counter[str] = Counter()
        self.ended = False

    @property
    def broken(self) -> list[Path]:
        """The logs that cannot be read to their ends."""
        return [tail.path for tail in (self._telemetry, self._events) if tail.broken]

    def changed(self) -> bool:
        """Whether `read` would find anything."""
        return any([self._telemetry.changed(), self._events.changed()])

    def read(self) -> None:
        """Take what has come. A log that was cut back, as for a resumed run, is read from its start."""
        for tail, start, take in (
            (self._telemetry, self._start_telemetry, self._step),
            (self._events, self._start_events, self._event),
        ):
            if tail.changed() and not tail.lines:
                start()
            for record in tail.new():
                take(record)

    def _step(self, record: dict[str, Any]) -> None:
        step = int(record["step"])
        found = figures(record)
        for name, value in found.items():
            if isinstance(value, list):
                if name not in self.heats or self.heats[name].width != len(value):
                    self.heats[name] = Series(len(value), capacity=HEAT)
                self.heats[name].add(step, value)
            else:
                self._curve(self.curves, name, step, value)
        self._ratios(step, found)
        self.last, self.steps = record, max(self.steps, step)

    def _ratios(self, step: int, found: Mapping[str, Any]) -> None:
        """What was added to a parameter, against what it is: of the whole, and of each parameter."""
        if "update_norm" in found and found.get("param_norm"):
            self._curve(self.curves, "update_ratio", step, found["update_norm"] / found["param_norm"])
        for name, update in found.items():
            if not name.startswith("update_norms/"):
                continue
            whole = found.get(name.replace("update", "param", 1))
            ratio = name.replace("update_norms", "update_ratios", 1)
            if isinstance(update, list) and isinstance(whole, list) and len(whole) == len(update):
                if ratio not in self.heats or self.heats[ratio].width != len(update):
                    self.heats[ratio] = Series(len(update), capacity=HEAT)
                self.heats[ratio].add(step, [u / w if w else 0.0 for u, w in zip(update, whole, strict=True)])
            elif isinstance(update, float) and isinstance(whole, float):
                self._curve(self.curves, ratio, step, update / whole if whole else 0.0)

    @staticmethod
    def _curve(curves: dict[str, Series], name: str, step: int, value: float) -> None:
        if name not in curves:
            curves[name] = Series(capacity=CURVE)
        curves[name].add(step, value)

    def _event(self, record: dict[str, Any]) -> None:
        kind, step = record["event"], record.get("step", 0)
        if kind == "pace" and record["seconds"] > 0:
            rate = record["steps"] / record["seconds"]
            self._curve(self.pace, "tokens_per_second", step, rate * self.tokens_per_step)
            if self.peak is not None:
                self._curve(self.pace, "mfu", step, rate * self.step_flops / self.peak)
            self._curve(self.pace, "waited", step, record["waited"] / record["seconds"])
        elif kind == "alarm":
            self.alarms.add(record)
            self.detectors[str(record["detector"])] += 1
        elif kind == "skipped":
            self.skipped.add(record)
        elif kind == "sample":
            self.samples.add(record)
        elif kind == "start":
            self.ended = False
            if step:
                self.resumed.add(record)
        elif kind == "end":
            self.ended = True
