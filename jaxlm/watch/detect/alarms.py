"""What a detector says, and how often it may say it of a run in which nothing is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxlm.watch.telemetry import number

Action = Literal["log", "skip", "rollback", "stop"]


class Alarm(NamedTuple):
    """One finding about one step.

    detector: its name, a key of `BUDGETS`. step: of the record, from 1. advice: what it calls for; what a run does is chosen in
    its config. what: the signal, with its parameter where it has one. layer: from 0, None where the signal has none. expected,
    found: in words. value, threshold: in the unit of the detector's score; NaN where it has none.
    """

    detector: str
    step: int
    advice: Action
    what: str
    layer: int | None
    expected: str
    found: str
    value: float = math.nan
    threshold: float = math.nan

    def words(self) -> str:
        """One line."""
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"step {self.step}: {self.detector}: {self.what}{where}: expected {self.expected}, found {self.found}"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; non-finite floats as "nan", "inf", "-inf"."""
        return {**self._asdict(), "value": number(self.value), "threshold": number(self.threshold)}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Alarm:
        """From an `alarm` event of a run. Raises KeyError where one of the fields is missing."""
        advice = event.get("advice", event["action"])  # older runs know the latter only
        fields = {name: event[name] for name in cls._fields if name not in ("advice", "value", "threshold")}
        return cls(**fields, advice=advice, value=float(event["value"]), threshold=float(event["threshold"]))


class Budget(NamedTuple):
    """alarms: at most so many in 1e5 steps of a clean run. advice: of its alarms. why: where the figure comes from.

    precursor: whether the signal moves before the loss does, so that the detector counts in a forecast.
    """

    alarms: float
    advice: Action
    why: str
    precursor: bool = False


_EXACT = "follows from an identity or a bound that every step keeps; rounding is allowed for"
_LOUD = "a value that no clean step has"
_JUMP = "robust z and a factor together, several steps in a row; measured by scripts/calibrate_detectors.py"

# Together at most 1 in 1e5 steps. A detector whose field is absent spends nothing.
BUDGETS: dict[str, Budget] = {
    "nonfinite": Budget(0.0, "skip", _LOUD, precursor=True),
    "loss_spike": Budget(0.3, "rollback", _JUMP),
    "loss_drop": Budget(0.03, "log", _JUMP),
    "loss_shift": Budget(0.2, "rollback", "CUSUM of clipped scores; measured by scripts/calibrate_detectors.py"),
    "loss_floor": Budget(0.0, "stop", "text has more entropy"),
    "loss_ceiling": Budget(0.0, "stop", "a uniform guess is better"),
    "first_loss": Budget(0.0, "stop", "an untrained model guesses uniformly, but for the spread of its logits"),
    "grad_norm": Budget(0.05, "log", _JUMP, precursor=True),
    "layer_gradient": Budget(0.05, "log", _JUMP, precursor=True),
    "backward_norm": Budget(0.02, "log", _JUMP, precursor=True),
    "update_ratio": Budget(0.03, "log", _JUMP, precursor=True),
    "attention_logits": Budget(0.02, "log", _JUMP, precursor=True),
    "attention_entropy": Budget(0.02, "log", _JUMP, precursor=True),
    "exploding_layer": Budget(0.04, "log", _JUMP, precursor=True),
    "collapsed_layer": Budget(0.02, "log", _JUMP, precursor=True),
    "representation_collapse": Budget(0.01, "log", "one direction for all positions, at a higher loss than was seen without"),
    "loss_spread": Budget(0.03, "log", _JUMP),
    "z_loss": Budget(0.02, "log", _JUMP, precursor=True),
    "bytes_per_label": Budget(0.02, "log", _JUMP),
    "supervised_share": Budget(0.02, "log", _JUMP),
    "embedding_rows": Budget(0.02, "log", _JUMP),
    "dead_layer": Budget(0.0, "log", "an exact zero, twice in 16 steps"),
    "frozen_parameter": Budget(0.0, "stop", "a norm equal to the bit under updates that it could show"),
    "norm_sum": Budget(0.0, "stop", _EXACT),
    "parameter_jump": Budget(0.0, "rollback", _EXACT),
    "residual_sum": Budget(0.0, "stop", _EXACT),
    "update_bound": Budget(0.0, "stop", _EXACT),
    "moments_lost": Budget(0.01, "log", "one share of the rate in three parameters of four, from one step to the next"),
    "learning_rate": Budget(0.0, "stop", "the schedule is a function of the step"),
    "loss_scale": Budget(0.0, "log", "the scale has a rule"),
    "scaler_thrashing": Budget(0.0, "log", "a healthy scale falls once in about 2000 steps"),
    "clipping": Budget(0.02, "log", "two shares of 100 steps, far apart"),
    "repeated_batch": Budget(0.03, "stop", "two CRCs of 32 bits in 1024 agree by chance with 2.4e-7 a step"),
    "repeated_rows": Budget(
        0.01, "log", "where one in 500 pairs of rows is equal, one batch of 4 rows in 84; four in a row 2e-8"
    ),
    "correlated_batches": Budget(0.01, "log", "a sign test at 6 standard errors or more, every 16 steps"),
    "validation_gap": Budget(0.02, "log", "a third of the loss, twice in a row"),
    "stalled_loader": Budget(0.0, "log", "the loop waits longer than it works; a symptom of the machine, not of the run"),
    "throughput": Budget(0.0, "log", "thrice as slow three times in a row; a symptom of the machine, not of the run"),
    "recompilation": Budget(0.0, "log", _LOUD),
}

OF_EVENTS = frozenset({"stalled_loader", "throughput", "recompilation"})  # judged by events; all others by the record of a step

PRECURSORS = frozenset(name for name, budget in BUDGETS.items() if budget.precursor)


def alarm(
    detector: str,
    record: Mapping[str, Any],
    what: str,
    *,
    expected: str,
    found: str,
    layer: int | None = None,
    value: float = math.nan,
    threshold: float = math.nan,
) -> Alarm:
    """An alarm at the step of `record`, with the detector's advice. Raises KeyError for one without a budget."""
    advice = BUDGETS[detector].advice
    return Alarm(detector, int(record["step"]), advice, what, layer, expected, found, float(value), float(threshold))


def applied(record: Mapping[str, Any]) -> bool:
    """Whether the update of a step was applied: it was finite, and nobody took it back."""
    return bool(record.get("finite", True)) and not record.get("skipped", 0)


def figure(record: Mapping[str, Any], name: str) -> float:
    """A float of a record; NaN where it is absent, null or "nan"."""
    value = record.get(name)
    return math.nan if value is None else float(value)
