"""The figures of a record whose jumps mean something, as one vector, with what counts as a jump of each.

All are norms, maxima and shares, above 0 where they exist, and are compared by their logarithm: a jump is a factor. A figure
that is absent, 0 or not finite is NaN here; exact zeros and non-finite values have detectors of their own.

Axes: S signal, one figure of one layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import applied, figure


class Jump(NamedTuple):
    """When a signal has jumped: `z` robust standard deviations and `factor` away from its median, `steps` steps in a row."""

    detector: str
    z: float
    factor: float
    steps: int


class Signal(NamedTuple):
    """A group of figures. read: the figures of a record by name, [L] lists or floats. up, down: what a jump is, None: nothing.

    least: the smallest scale of the logarithm that is believed. first: whether the earliest layer that jumped is the place,
    since later ones inherit it; otherwise the layer that jumped farthest is. drift: a factor over some hundred steps that
    alarms as well, as `up` (above 1) or as `down` (below); 0: none.
    """

    what: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    up: Jump | None
    down: Jump | None
    least: float = 0.05
    first: bool = False
    drift: float = 0.0


def _field(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda record: {"": record[name]} if name in record else {}


def _group(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda record: record.get(name, {})


def _part(group: str, name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def read(record: Mapping[str, Any]) -> Mapping[str, Any]:
        found = record.get(group, {})
        return {"": found[name]} if name in found else {}

    return read


def _update_ratios(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Update over parameter and rate: the rate of a schedule moves it no more."""
    rate = figure(record, "lr")
    if not rate > 0.0 or not applied(record):
        return {}
    if "update_norms" not in record or "param_norms" not in record:
        ratio = figure(record, "update_norm") / rate / figure(record, "param_norm") if record.get("param_norm") else math.nan
        return {"": ratio}
    norms = record["param_norms"]
    return {name: _quotient(value, norms[name], rate) for name, value in record["update_norms"].items() if name in norms}


def _quotient(over: Any, under: Any, rate: float) -> Any:
    """over / under / rate, floats or lists of them; NaN where `under` is 0."""
    if isinstance(over, list):
        return [_quotient(one, other, rate) for one, other in zip(over, under, strict=True)]
    return float(over) / float(under) / rate if float(under) else math.nan


def _bytes_per_label(record: Mapping[str, Any]) -> Mapping[str, Any]:
    labels, count = figure(record, "labels"), figure(record, "bytes")
    return {"": count / labels} if labels > 0 else {}


def _moving_rows(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"": 1.0 - figure(record, "embed_rows_still")} if "embed_rows_still" in record else {}


_RMS = (Jump("exploding_layer", 10, 2, 2), Jump("collapsed_layer", 10, 2, 3))
_SHARE = Jump("supervised_share", 8, 1.25, 3)  # of small batches a fifth may be unsupervised by chance
_ENTROPY = Jump("attention_entropy", 8, 1.6, 2)
_SPREAD = Jump("loss_spread", 8, 1.5, 2)
_TEXT = Jump("bytes_per_label", 8, 1.3, 3)
_PARTS = ("residual", "attn", "mlp")

SIGNALS: tuple[Signal, ...] = (
    Signal("gradient norm", _field("grad_norm"), Jump("grad_norm", 8, 3, 2), None),
    Signal("gradient of", _group("grad_norms"), Jump("layer_gradient", 10, 4, 2), Jump("layer_gradient", 10, 8, 3)),
    Signal("update ratio of", _update_ratios, Jump("update_ratio", 8, 2.5, 2), Jump("update_ratio", 8, 2.5, 3)),
    *(Signal(f"{part} RMS", _part("activations", f"{part}_rms"), *_RMS, first=True, drift=4.0) for part in _PARTS),
    *(
        Signal(f"{part} maximum", _part("activations", f"{part}_max"), Jump("exploding_layer", 10, 3, 2), None, first=True)
        for part in _PARTS
    ),
    Signal(
        "logit maximum", _part("activations", "logit_max"), Jump("attention_logits", 8, 1.8, 2), None, first=True, drift=2.5
    ),
    Signal("attention entropy", _part("activations", "entropy"), _ENTROPY, _ENTROPY, first=True, drift=1 / 2.5),
    Signal("backward RMS", _part("backward", "residual_rms"), Jump("backward_norm", 10, 4, 2), Jump("backward_norm", 10, 8, 3)),
    Signal("spread of the loss", _field("loss_spread"), _SPREAD, _SPREAD),
    Signal("log-sum-exp squared", _field("z_loss"), Jump("z_loss", 8, 3, 2), Jump("z_loss", 10, 4, 3)),
    Signal("bytes per label", _bytes_per_label, _TEXT, _TEXT),
    Signal("share of supervised labels", _field("supervised"), _SHARE, _SHARE, 0.02),
    Signal("supervised labels", _field("labels"), _SHARE, _SHARE, 0.02),
    Signal("embedding rows with a gradient", _moving_rows, None, Jump("embedding_rows", 8, 1.5, 3)),
)

Keys = tuple[tuple[int, str, int], ...]  # index into SIGNALS, name, layers (0: a scalar)


class Rows(NamedTuple):
    """What stands in the S rows of a vector, each array [S]. signal: index; what, layer (-1: none): for words.

    z, change, steps: [2, S], up and down: the score, the change of the logarithm, the steps in a row that make a jump, infinite
    where none is one. drift: change of the logarithm, signed, NaN for none. least: smallest scale.
    """

    signal: np.ndarray
    what: tuple[str, ...]
    layer: np.ndarray
    z: np.ndarray
    change: np.ndarray
    steps: np.ndarray
    drift: np.ndarray
    least: np.ndarray


def vector(record: Mapping[str, Any]) -> tuple[Keys, np.ndarray]:
    """The signals of a record: keys, and logarithms, float64 [S], NaN for what is not above 0 or not finite."""
    keys: list[tuple[int, str, int]] = []
    found: list[Any] = []
    for index, signal in enumerate(SIGNALS):
        for name, value in signal.read(record).items():
            if isinstance(value, list):
                keys.append((index, name, len(value)))
                found += value
            else:
                keys.append((index, name, 0))
                found.append(value)
    values = np.array(found, np.float64)  # of "nan" and "inf", and of None, as well
    good = np.isfinite(values) & (values > 0.0)
    return tuple(keys), np.log(values, out=np.full(values.shape, np.nan), where=good)


@functools.lru_cache(maxsize=16)
def rows(keys: Keys) -> Rows:
    """The rows that vectors with these keys have."""
    where = [(index, name, layer) for index, name, layers in keys for layer in (range(layers) if layers else (-1,))]
    signals = [SIGNALS[index] for index, _, _ in where]
    jumps = [[signal.up for signal in signals], [signal.down for signal in signals]]
    return Rows(
        signal=np.array([index for index, _, _ in where], np.int64),
        what=tuple(f"{SIGNALS[index].what} {name}".rstrip() for index, name, _ in where),
        layer=np.array([layer for _, _, layer in where], np.int64),
        z=np.array([[jump.z if jump else math.inf for jump in row] for row in jumps]).reshape(2, -1),
        change=np.array([[math.log(jump.factor) if jump else math.inf for jump in row] for row in jumps]).reshape(2, -1),
        steps=np.array([[jump.steps if jump else 1 << 30 for jump in row] for row in jumps], np.int64).reshape(2, -1),
        drift=np.array([math.log(signal.drift) if signal.drift else math.nan for signal in signals]),
        least=np.array([signal.least for signal in signals]),
    )
