"""How long before a spike of the loss something else moved: for a finished run, whose spikes are known."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import PRECURSORS, Alarm, figure
from jaxlm.watch.detect.bank import watch
from jaxlm.watch.detect.expected import Expected
from jaxlm.watch.detect.robust import SIGMA

PAST, LEAST = 64, 32  # losses whose median a spike rises above, and the fewest
SPIKE_Z, SPIKE_NATS = 8.0, 0.15
MERGE = 16  # steps between two rises that are one spike
HORIZON = 128  # steps before a spike in which a precursor counts


class Spike(NamedTuple):
    """step: the first above the limit. height: nats above the median, at the highest. last: the last step above the limit.

    recovered: whether the loss came back within the run. precursor: the first alarm of a precursor in the `HORIZON` steps
    before, None without one; lead: by how many steps it came before the spike.
    """

    step: int
    height: float
    last: int
    recovered: bool
    precursor: Alarm | None
    lead: int | None


def forecast(records: Iterable[Mapping[str, Any]], expected: Expected = Expected()) -> list[Spike]:
    """The spikes of a run, in order. records: its telemetry, and its events where they declare a change, in their order."""
    records = list(records)
    steps = [record for record in records if "event" not in record]
    alarms = [alarm for alarm in watch(records, expected) if alarm.detector in PRECURSORS]
    found = []
    for first, last, height, recovered in spikes(np.array([figure(record, "loss") for record in steps])):
        step = int(steps[first]["step"])
        before = [alarm for alarm in alarms if step - HORIZON <= alarm.step < step]
        precursor = before[0] if before else None
        lead = step - precursor.step if precursor else None
        found.append(Spike(step, height, int(steps[last]["step"]), recovered, precursor, lead))
    return found


def spikes(losses: np.ndarray) -> list[tuple[int, int, float, bool]]:
    """First and last index, height and recovery of each spike of float64 [N], seen from after the end of the run.

    A loss is in a spike where it is not finite, or above the median of the last `PAST` that were in none by `SPIKE_Z` of their
    robust standard deviations and by `SPIKE_NATS`: a spike lasts until the loss is back, however long that is. The first
    `LEAST` losses have no past to rise above.
    """
    calm: deque[float] = deque(maxlen=PAST)
    found: list[tuple[int, int, float, bool]] = []
    for at, loss in enumerate(losses.tolist()):
        height = _height(loss, calm) if len(calm) >= LEAST else 0.0
        if height == 0.0:
            if math.isfinite(loss):
                calm.append(loss)
            continue
        ended = at < len(losses) - 1
        if found and at - found[-1][1] <= MERGE:
            first, _, before, _ = found[-1]
            found[-1] = first, at, max(before, height), ended
        else:
            found.append((at, at, height, ended))
    return found


def _height(loss: float, calm: Collection[float]) -> float:
    """Nats above the median of `calm`, 0 where that is no spike, infinite where the loss is not finite."""
    if not math.isfinite(loss):
        return math.inf
    past = np.array(calm)
    middle = np.median(past)
    limit = max(SPIKE_NATS, SPIKE_Z * SIGMA * float(np.median(np.abs(past - middle))))
    height = loss - float(middle)
    return height if height > limit else 0.0
