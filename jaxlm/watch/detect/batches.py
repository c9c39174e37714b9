"""What the batches are: the same one twice, equal rows in one, neighbours that are alike, too few supervised labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.watch.detect.alarms import Alarm, alarm, figure
from jaxlm.watch.detect.expected import Expected

REMEMBERED = 16384  # batches
NEAR = 1024  # of them, one that comes again alarms by itself; of older ones two in a row do, by the same distance
EPOCH = 0x9E3779B9  # odd, so that every epoch, mod 2^32, makes another number of a CRC
SHARE, STEPS = 1 / 16, 4  # of the rows of a batch that repeat others in it, and steps in a row with so many
RUNS = 256  # steps of a test for alike neighbours
EVERY = 16  # steps between two tests
# Standard errors. Bytes per label depend on the text alone, and shuffled text has no memory; the loss has some of its own, from
# the steps themselves, and is no measure of the order.
RUNS_Z = 6.0


class Batches(NamedTuple):
    """crcs: uint32 [REMEMBERED], of batches and the epochs they are of, oldest first; known: how many. lag: by how many steps
    the last batch was a repetition, 0 for none. rows: steps in a row with repeated rows. texts: float64 [RUNS], bytes per
    label, NaN where there is none. seen: steps."""

    crcs: np.ndarray
    texts: np.ndarray
    known: int = 0
    lag: int = 0
    seen: int = 0
    rows: int = 0


def batches() -> Batches:
    """The state before the first step."""
    return Batches(np.zeros(REMEMBERED, np.uint32), np.full(RUNS, math.nan))


def observe(state: Batches, record: Mapping[str, Any], expected: Expected) -> tuple[Batches, list[Alarm]]:
    """`repeated_batch` from the second step on, `repeated_rows` from the fourth, `correlated_batches` after 256,
    `supervised_share` below the config's least at once. Budgets 0.03, 0.01 and 0.01 in 1e5, and 0."""
    state, alarms = _repeated(state, record)
    share = figure(record, "repeated_rows")
    state = state._replace(rows=state.rows + 1 if share >= SHARE else 0)
    if state.rows >= STEPS:
        found = f"{share:.1%} of its rows that repeat others of the batch, {state.rows} steps in a row"
        alarms.append(
            alarm("repeated_rows", record, "batch", expected=f"less than {SHARE:.1%} of equal rows", found=found, value=share,
                  threshold=SHARE)
        )  # fmt: skip
    share = figure(record, "supervised")
    if share < expected.min_supervised:
        why, found = f"a share of at least {expected.min_supervised:g}", f"{share:.3g}"
        alarms.append(
            alarm("supervised_share", record, "supervised labels", expected=why, found=found, value=share,
                  threshold=expected.min_supervised)
        )  # fmt: skip
    labels = figure(record, "labels")
    texts = np.append(state.texts[1:], figure(record, "bytes") / labels if labels > 0 else math.nan)
    state = state._replace(texts=texts, seen=state.seen + 1)
    z = agreement(texts) if state.seen % EVERY == 0 else math.nan
    if z > RUNS_Z:
        found = f"neighbours alike over {RUNS} steps, {z:.1f} standard errors"
        alarms.append(
            alarm("correlated_batches", record, "bytes per label", expected="batches in a random order", found=found, value=z,
                  threshold=RUNS_Z)
        )  # fmt: skip
    return state, alarms


def agreement(past: np.ndarray) -> float:
    """Standard errors by which neighbours lie on the same side of the median more often than every second time; NaN where
    `past` has gaps, or lies on its median in half of the cases."""
    if not np.isfinite(past).all():
        return math.nan
    sides = np.sign(past - np.median(past))
    agree = sides[1:] * sides[:-1]
    count = int(np.count_nonzero(agree))
    return float(agree.sum() / math.sqrt(count)) if count > len(past) // 2 else math.nan


def _repeated(state: Batches, record: Mapping[str, Any]) -> tuple[Batches, list[Alarm]]:
    if record.get("batch_crc") is None:
        return state._replace(lag=0), []
    # In another epoch a batch may come again: one row of a thousand does. Records from before there were epochs have one.
    crc = np.uint32((int(record["batch_crc"]) ^ int(record.get("epoch") or 0) * EPOCH) & 0xFFFFFFFF)
    known = state.crcs[REMEMBERED - state.known :]
    places = np.flatnonzero(known == crc)
    lag = len(known) - int(places[-1]) if places.size else 0
    moved = state._replace(crcs=np.append(state.crcs[1:], crc), known=min(state.known + 1, REMEMBERED), lag=lag)
    if not lag or (lag > NEAR and lag != state.lag):
        return moved, []
    found = f"that of {lag} steps before"
    return moved, [
        alarm("repeated_batch", record, "batch", expected="a batch that is new in its epoch", found=found, value=lag)
    ]
