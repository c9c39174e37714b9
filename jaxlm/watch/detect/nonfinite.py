"""Where the first value that is not finite came into a step: the layer and the direction, from counts alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.expected import Expected

_PARTS = (("attn", "attention"), ("mlp", "feed-forward"))


class Location(NamedTuple):
    """direction: that of the pass, or the update after both. layer: from 0, None outside of the blocks. what: the part."""

    direction: Literal["forward", "backward", "update"]
    layer: int | None
    what: str


def localise(record: Mapping[str, Any]) -> Location | None:
    """Where non-finite values began in a step; None where all that the record holds is finite.

    What is not finite in the forward pass spoils all that comes after, the backward pass included: the earliest place of the
    forward pass is the origin. Where the forward pass is clean, the backward pass runs from the last block to the first, and
    the highest layer is. A record without counts is judged by its norms, which are not finite where their sums are not.
    """
    return _forward(record) or _backward(record) or _update(record)


def _forward(record: Mapping[str, Any]) -> Location | None:
    counts = record.get("nonfinite_forward")
    if counts is None:
        activations = record.get("activations", {})
        counts = {part: _bad(activations.get(f"{part}_rms", ())) for part in ("residual", "attn", "mlp")}
    for layer, entering in enumerate(counts.get("residual", ())):
        if entering:
            return Location("forward", layer - 1, "sum of the block") if layer else Location("forward", None, "embedding")
        for part, what in _PARTS:
            if layer < len(counts.get(part, ())) and counts[part][layer]:
                return Location("forward", layer, what)
    if "loss" in record and not math.isfinite(figure(record, "loss")):
        return Location("forward", None, "head or loss")
    return None


def _backward(record: Mapping[str, Any]) -> Location | None:
    inputs = list(record.get("nonfinite_backward", ()))
    # A total that is finite has no part that is not.
    parts = {} if math.isfinite(figure(record, "grad_norm")) else record.get("grad_norms", {})
    norms = {name: _bad(norm if isinstance(norm, list) else [norm]) for name, norm in parts.items()}
    blocks = {name: bad for name, bad in norms.items() if name.startswith("blocks/")}
    others = [name for name, bad in norms.items() if name not in blocks and any(bad)]
    highest = _last(inputs)
    for bad in blocks.values():
        highest = max(highest, _last(bad))
    if highest < 0:
        return Location("backward", None, others[0]) if others else None
    top = max(len(inputs), *(len(bad) for bad in blocks.values())) if blocks else len(inputs)
    # The gradients of what comes after the last block are not finite only where the trouble began there.
    if highest == top - 1 and (after := [name for name in others if name != "embed"]):
        return Location("backward", None, after[0])
    parameters = [name for name, bad in blocks.items() if highest < len(bad) and bad[highest]]
    spread = len(parameters) in (0, len(blocks)) or any(inputs[highest : highest + 1])
    return Location("backward", highest, "block" if spread else ", ".join(parameters))


def _update(record: Mapping[str, Any]) -> Location | None:
    """An update that is not finite of what is: of a weight whose square overflows, where there is one."""
    if record.get("finite", True):
        return None
    for name, norm in record.get("param_norms", {}).items():
        bad = _bad(norm if isinstance(norm, list) else [norm])
        if any(bad):
            return Location("update", bad.index(True) if isinstance(norm, list) else None, f"the update of {name}")
    return Location("update", None, record.get("nonfinite") or "the update")


def _bad(values: Sequence[Any]) -> list[bool]:
    return [bool(bad) for bad in ~np.isfinite(np.asarray(values, np.float64))]


def _last(flags: Sequence[Any]) -> int:
    """The index of the last true one, -1 without any."""
    return max((index for index, flag in enumerate(flags) if flag), default=-1)


def observe(state: None, record: Mapping[str, Any], expected: Expected) -> tuple[None, list[Alarm]]:
    """`nonfinite`, in the step where it happens, a swallowed infinity included. Budget 0: no clean step has any.

    With a scaled loss (float16) gradients that overflow are how the scale finds its size: that is left to `scaler`.
    """
    where = localise(record)
    scaled = figure(record, "loss_scale") > 1.0 if expected.scaled is None else expected.scaled
    if where is None or (scaled and where.direction == "backward"):
        return None, []
    found = f"non-finite values, first in the {where.direction} pass" if where.direction != "update" else "a non-finite update"
    return None, [alarm("nonfinite", record, where.what, layer=where.layer, expected="finite values", found=found)]
