"""A telemetry record as named figures, and what takes them: the shape that all sinks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

NO_FIGURES = ("step", "batch_crc", "alarms", "chain")
PARAMETERS = ("grad_norms", "param_norms", "update_norms")  # groups whose members are parameters, by name
SPELT = ("nan", "inf", "-inf")  # figures that JSON holds as words, which `float` reads


class Sink(Protocol):
    """Where the records of a run go, beside its own logs. Calls come from one thread, in the order of the steps."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take the telemetry record of a step."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Take a line of the event log; those that mean nothing to the sink are passed over."""

    def close(self) -> None:
        """Send what is left, and end. Nothing may be written afterwards."""


def figures(record: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """Every figure of a record by name, nested names joined by `/`; a list where there is one for each layer.

    `activations/residual_rms`, `grad_norms/blocks/wq`, `validation/loss`. Truth values are 0 and 1, and NaN and the
    infinities, which JSON holds as words, are numbers again. Words, figures that are not known (None) and what is no
    figure (`NO_FIGURES`) are left out.
    """
    found: dict[str, float | list[float]] = {}
    for name, value in record.items():
        if name in NO_FIGURES or value is None:
            continue
        if isinstance(value, (list, tuple)):
            found[name] = list(map(float, value))
        elif isinstance(value, Mapping):
            found |= {f"{name}/{inner}": figure for inner, figure in figures(value).items()}
        elif value in SPELT or not isinstance(value, str):
            found[name] = float(value)
    return found


def scalars(record: Mapping[str, Any], *, layers_every: int) -> dict[str, float]:
    """The figures of a step as single numbers, for sinks that know no lists.

    Those of the whole and of a validation at every step; those of single layers and parameters, of which there are hundreds,
    at the first step and at multiples of `layers_every`. A layer is `activations/residual_rms/03`, with enough digits to be
    sorted.
    """
    whole = record["step"] % layers_every == 0 or record["step"] == 1
    found: dict[str, float] = {}
    for name, value in figures(record).items():
        if isinstance(value, list):
            digits = len(str(max(len(value) - 1, 0)))
            found |= {f"{name}/{layer:0{digits}d}": one for layer, one in enumerate(value)} if whole else {}
        elif whole or "/" not in name or name.startswith("validation/"):
            found[name] = value
    return found
