"""Layers that do nothing: exact zeros, and outputs that vanish beside those of the other layers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxlm.watch.detect.alarms import Alarm, alarm, applied, figure
from jaxlm.watch.detect.expected import Expected

ZERO_STEPS = 16  # in which there are two exact zeros: a rare batch may give one, weights that start at 0 give one
FAINT, FAINT_STEPS = 1e-3, 16  # an output of this share of the layers' median, so many steps in a row


class Dead(NamedTuple):
    """By signal and layer (0 where it has none). zero: the last step in which it was exactly 0. faint: steps in a row in which
    it was, where that is not 0."""

    zero: dict[str, dict[str, int]]
    faint: dict[str, dict[str, int]]


def dead() -> Dead:
    """The state before the first step."""
    return Dead({}, {})


def observe(state: Dead, record: Mapping[str, Any], expected: Expected) -> tuple[Dead, list[Alarm]]:
    """`dead_layer`: a parameter whose gradient or update, or a block whose attention or feed-forward, is exactly 0 twice in
    sixteen steps, or faint beside the others for sixteen in a row. Budget 0. From the second step on. A step that was skipped
    says nothing."""
    if not applied(record):
        return state, []
    zero, faint = dict(state.zero), {}
    alarms: list[Alarm] = []
    for what, values in _signals(record):
        if 0.0 in values if isinstance(values, list) else values == 0.0:
            before, now = state.zero.get(what, {}), dict.fromkeys(_zeros(values), int(record["step"]))
            zero[what] = {**before, **now}
            again = [layer for layer, step in now.items() if 0 < step - before.get(layer, -ZERO_STEPS) < ZERO_STEPS]
            alarms += _at(record, what, values, again, f"exactly 0 again within {ZERO_STEPS} steps")
    for what, values in _outputs(record):
        limit = FAINT * statistics.median(map(float, values))
        if any(float(value) < limit for value in values):
            faint[what] = _streaks(state.faint.get(what, {}), values, limit)
            why = f"under {FAINT:g} of the median layer for {FAINT_STEPS} steps"
            alarms += _at(record, what, values, [layer for layer, n in faint[what].items() if n == FAINT_STEPS], why)
    return Dead(zero, faint), alarms


def _signals(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, norm in record.get("grad_norms", {}).items():
        yield f"gradient of {name}", norm
    if figure(record, "lr") > 0.0:
        for name, norm in record.get("update_norms", {}).items():
            yield f"update of {name}", norm
    yield from _outputs(record)


def _outputs(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for part, what in (("attn_rms", "output of attention"), ("mlp_rms", "output of the feed-forward")):
        if part in record.get("activations", {}):
            yield what, record["activations"][part]


def _streaks(before: Mapping[str, int], values: Any, limit: float) -> dict[str, int]:
    layers = values if isinstance(values, list) else [values]
    return {str(layer): before.get(str(layer), 0) + 1 for layer, value in enumerate(layers) if float(value) < limit}


def _zeros(values: Any) -> list[str]:
    return [str(layer) for layer, value in enumerate(values if isinstance(values, list) else [values]) if value == 0.0]


def _at(record: Mapping[str, Any], what: str, values: Any, layers: Iterable[str], found: str) -> Iterator[Alarm]:
    for layer in map(int, layers):
        where, value = (layer, float(values[layer])) if isinstance(values, list) else (None, float(values))
        yield alarm(
            "dead_layer", record, what, layer=where, expected="a layer that learns", found=found, value=value, threshold=0.0
        )
