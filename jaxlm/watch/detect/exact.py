"""What holds at every step of every run, whatever its loss looks like: sums, triangles and Adam's bound.

No statistics and no warm-up: a violation means that a reported figure, or what was done to the parameters between two steps, is
not what the step says it is. Tolerances are for rounding alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, applied, figure
from jaxlm.watch.detect.expected import Expected

SUM = 1e-3  # relative difference of a norm and the root of the sum of squares of its parts, all computed in float32
ROUNDING = 2e-5  # of a parameter's norm: float32 rounding of up to 1e9 squares, added in a tree
HALF_ROUNDING = 0.02  # of RMS values of bfloat16 activations, whose sums were rounded to 8 bits
BOUND = 0.02  # relative, over Adam's bound: epsilon lowers an update, rounding alone may raise it
FROZEN_STEPS, FROZEN_RATIO = 8, 1e-4  # a norm that stays the same to the bit so long, under updates of this share of it
# Late in a run decay and update keep a norm where it is, and only the part of an update along its parameter moves it: of n
# elements 1 / sqrt(n). At 32 last bits of a float32 norm, with a momentum of 0.9, eight still steps are as likely as 1e-10.
VISIBLE = 32 * 2.0**-23

Rows = tuple[tuple[str, int], ...]  # name of a parameter, layer (-1: none)
_TOTALS = (("grad_norm", "grad_norms"), ("param_norm", "param_norms"), ("update_norm", "update_norms"))


class Exact(NamedTuple):
    """rows: names and layers of the parameters (layer -1: not of a block). norms: float64 [P], after the last step. still:
    int64 [P], steps in a row in which each stayed equal to the bit under an update. step: the last one. updates: those that
    were applied so far, None where the watching began in the middle of a run."""

    rows: Rows
    norms: np.ndarray
    still: np.ndarray
    step: int = 0
    updates: int | None = None


def exact() -> Exact:
    """The state before the first step."""
    return Exact((), np.zeros(0), np.zeros(0, np.int64))


def observe(state: Exact, record: Mapping[str, Any], expected: Expected) -> tuple[Exact, list[Alarm]]:
    """`norm_sum`, `parameter_jump`, `frozen_parameter`, `residual_sum`, `update_bound`. Budgets 0. From the first step on."""
    alarms = [*_sums(record), *_residuals(record, expected)]
    step, moves = int(record["step"]), applied(record)
    updates = 0 if step == 1 else state.updates
    if updates is not None:
        updates += moves
    rows, norms = flat(record.get("param_norms", {}))
    still = np.zeros(len(rows), np.int64)
    moved_rows, moved = flat(record.get("update_norms", {}))
    if not rows or moved_rows != rows:
        return Exact(rows, norms, still, step, updates), alarms
    if moves and updates is not None:
        alarms += _bounds(record, expected, rows, norms, moved, updates)
    if step == state.step + 1 and rows == state.rows:
        moved = moved if moves else np.zeros_like(moved)
        alarms += _jumps(state, record, norms, moved)
        shows = moved > np.maximum(FROZEN_RATIO, VISIBLE * roots(rows, expected)) * norms
        still = np.where((norms == state.norms) & shows, state.still + 1, 0) if moves else state.still
        alarms += _frozen(record, rows, still) if moves else []
    return Exact(rows, norms, still, step, updates), alarms


def roots(rows: Rows, expected: Expected) -> np.ndarray:
    """Roots of the numbers of elements, float64 [P]; infinite where they are not known."""
    return np.sqrt([(expected.sizes or {}).get(name, math.inf) for name, _ in rows])


def flat(group: Mapping[str, Any]) -> tuple[Rows, np.ndarray]:
    """Norms by name, as rows and float64 [P]."""
    found: list[Any] = []
    shape = tuple((name, len(norm) if isinstance(norm, list) else 0) for name, norm in group.items())
    for norm in group.values():
        found += norm if isinstance(norm, list) else [norm]
    return _rows(shape), np.array(found, np.float64)


@functools.lru_cache(maxsize=16)
def _rows(shape: tuple[tuple[str, int], ...]) -> Rows:
    return tuple((name, layer) for name, layers in shape for layer in (range(layers) if layers else (-1,)))


def _sums(record: Mapping[str, Any]) -> Iterator[Alarm]:
    """Norms of a whole, and of its parts together."""
    for total, parts in _TOTALS:
        if total not in record or parts not in record or not (record.get("finite", True) or total != "update_norm"):
            continue
        whole, norms = figure(record, total), flat(record[parts])[1]
        together = math.sqrt(float(norms @ norms))
        if math.isfinite(whole) and math.isfinite(together) and abs(whole - together) > SUM * max(whole, together):
            yield alarm(
                "norm_sum", record, total, expected=f"{together:.6g}, the root of the sum of squares of {parts}",
                found=f"{whole:.6g}", value=whole / together if together else math.inf, threshold=1.0 + SUM,
            )  # fmt: skip


def _jumps(state: Exact, record: Mapping[str, Any], norms: np.ndarray, moved: np.ndarray) -> Iterator[Alarm]:
    """The norm of a sum differs from that of one term by at most the norm of the other."""
    # Of a norm that is no number the comparison is false: that is not this detector's to say.
    with np.errstate(invalid="ignore"):
        excess = np.abs(norms - state.norms) / (moved * (1.0 + SUM) + ROUNDING * np.maximum(norms, state.norms) + 1e-12)
        over = excess > 1.0
    if over.any():
        row = int(np.argmax(np.where(over, excess, 0.0)))
        name, layer = state.rows[row]
        yield alarm(
            "parameter_jump", record, f"norm of {name}", layer=None if layer < 0 else layer,
            expected="a change within the norm of the update", found=f"one of {excess[row]:.3g} times that",
            value=excess[row], threshold=1.0,
        )  # fmt: skip


def _frozen(record: Mapping[str, Any], rows: Rows, still: np.ndarray) -> Iterator[Alarm]:
    for name, layer in (rows[row] for row in np.flatnonzero(still == FROZEN_STEPS)):
        yield alarm(
            "frozen_parameter", record, f"norm of {name}", layer=None if layer < 0 else layer,
            expected="a parameter that its updates move",
            found=f"the same to the bit in {FROZEN_STEPS} steps, under updates that it would show",
            value=FROZEN_STEPS, threshold=FROZEN_STEPS,
        )  # fmt: skip


def _residuals(record: Mapping[str, Any], expected: Expected) -> Iterator[Alarm]:
    """A block hands on its input plus what attention and feed-forward add: the RMS keeps to the triangle of the three."""
    found = record.get("activations", {})
    if not expected.balanced or not all(f"{part}_rms" in found for part in ("residual", "attn", "mlp")):
        return
    residual, attn, mlp = (np.asarray(found[f"{part}_rms"], np.float64) for part in ("residual", "attn", "mlp"))
    added = attn[:-1] + mlp[:-1]
    slack = HALF_ROUNDING * (residual[:-1] + added)
    out = (residual[1:] > residual[:-1] + added + slack) | (residual[1:] < residual[:-1] - added - slack)
    for layer in itertools.islice(np.flatnonzero(out).tolist(), 1):
        span = f"{max(residual[layer] - added[layer], 0.0):.4g} to {residual[layer] + added[layer]:.4g}"
        yield alarm(
            "residual_sum", record, "residual RMS after the block", layer=layer,
            expected=f"{span}, by its input and what it adds", found=f"{residual[layer + 1]:.4g}",
        )  # fmt: skip


def _bounds(
    record: Mapping[str, Any], expected: Expected, rows: Rows, norms: np.ndarray, moved: np.ndarray, updates: int
) -> Iterator[Alarm]:
    """An element of Adam's update is within `adam_bound` of the rate, decay apart.

    The first update is the sign of the gradient, where that is well above epsilon: a larger one is not corrected for the
    start of its moments, or has another rate.
    """
    rate = figure(record, "lr")
    if expected.sizes is None or expected.betas is None or not rate > 0.0:
        return
    bound = adam_bound(*expected.betas, updates)
    root = roots(rows, expected)
    with np.errstate(invalid="ignore"):
        share = moved / (rate * root)
        over = share > bound * (1.0 + BOUND) + expected.weight_decay * (norms / root + rate)
    if over.any():
        row = int(np.argmax(np.where(over, share, 0.0)))
        name, layer = rows[row]
        yield alarm(
            "update_bound", record, f"update of {name}", layer=None if layer < 0 else layer,
            expected=f"an RMS of at most {bound:.4g} times the rate, and decay", found=f"{share[row]:.4g} times the rate",
            value=share[row], threshold=bound,
        )  # fmt: skip


def adam_bound(b1: float, b2: float, updates: int) -> float:
    """The largest |m| / sqrt(v), both corrected for their start, after n = `updates`, by Cauchy and Schwarz.

    m = (1 - b1) sum b1^i g_i and v = (1 - b2) sum b2^i g_i^2 give m^2 <= v (1 - b1)^2 / (1 - b2) * sum (b1^2 / b2)^i; the
    corrections multiply by sqrt(1 - b2^n) / (1 - b1^n). It is 1 for n = 1, and infinite for b2 = 0 or a sum beyond all bounds.
    """
    if b2 == 0.0:
        return 1.0 if b1 == 0.0 else math.inf
    ratio = b1 * b1 / b2
    if ratio > 1.0 and updates * math.log(ratio) > 700.0:
        return math.inf
    terms = float(updates) if ratio == 1.0 else (ratio**updates - 1.0) / (ratio - 1.0)
    return (1.0 - b1) * math.sqrt(terms / (1.0 - b2)) * math.sqrt(1.0 - b2**updates) / (1.0 - b1**updates)
