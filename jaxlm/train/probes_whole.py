"""The probe of the gradient of whole batches, as the compiled step makes it: a document gives the same one wherever it lies.

What is cut into blocks, of positions for the head or of keys for attention, can lose the gradient of all blocks but one. The
small batches of other probes are one block, and in a batch of many documents the gradient that is lost is too unlike the others
to be missed. So the step that trains is asked, at its own shape, for that of a single document in several places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import Batch
from jaxlm.model.spec import named_leaves
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.probes_rule import MOVED, NOISE, agree, dot
from jaxlm.train.probes_update import one_step, scored

PART = 4  # the document is one of so many parts of a row
LEAST = 1e-6  # of the whole gradient: what a leaf may be off by, however small its own is


def gradient_of_places(bench: Bench) -> Probe:
    """One document, the only one that is supervised, gives one loss and one gradient at the begin and at the end of the first
    row, in the middle of the middle one, and at both ends of the last one; and that loss falls along it as its norm says.

    The gradient is read off the first moments after one update from a fresh state. Costs a step for each place, and in float32
    two passes forward over a batch. No verdict where dropout draws other units at other places.
    """
    name, cfg = "gradient_of_places", bench.cfg
    if cfg.model.dropout:
        return Probe(name, True, "no verdict with dropout", "dropout")
    places = _places(*bench.full.tokens.shape)
    base = _at(bench.full, *places[0])
    after, telemetry = one_step(bench, batch=base)
    first, loss = after.opt_state[-1].mu, float(telemetry.loss)
    norms = _norms(first)
    whole = math.sqrt(sum(norm**2 for norm in norms.values()))
    if not math.isfinite(whole) or not whole:
        return Probe(name, False, "a gradient that is finite and not 0", f"first moments of norm {whole}")
    for row, begin in places[1:]:
        after, telemetry = one_step(bench, batch=_at(bench.full, row, begin))
        where = f"of a document at position {begin} of row {row}, as at position {places[0][1]} of row {places[0][0]}"
        if not abs(float(telemetry.loss) - loss) <= bench.tolerance * max(loss, 1.0):
            return Probe(name, False, f"a loss of {loss:.6g} {where}", f"{float(telemetry.loss):.6g}")
        for path, off in _norms(jax.tree.map(jnp.subtract, after.opt_state[-1].mu, first)).items():
            if not off <= bench.tolerance * norms[path] + LEAST * whole:
                return Probe(name, False, f"the gradient {where}", f"that of {path} off by {off / norms[path]:.2g} of its norm")
    if cfg.train.precision == "float32" and not cfg.train.z_loss:
        clipped = min(1.0, cfg.optim.clip_norm / float(telemetry.grad_norm)) if cfg.optim.clip_norm else 1.0
        size = whole / ((1.0 - cfg.optim.b1) * clipped)  # of the gradient, in place of its first moments
        target = MOVED * max(loss, 1.0)

        def difference(share: float) -> float:
            by = share * target / (size * whole)
            ways = (jax.tree.map(lambda p, m, f=f: p + f * m, bench.params, first) for f in (by, -by))
            up, down = (scored(bench, base, params=way)[0] for way in ways)
            return (up - down) / (2 * share)

        verdict, found = agree(difference, target, NOISE * max(loss, 1.0))
        if verdict is False:
            return Probe(name, False, f"a loss that moves by {target:.3g} along its gradient", f"one that moves by {found:.3g}")
    return Probe(name, True, "one loss and one gradient wherever a document lies", f"those, at {len(places)} places")


def _places(rows: int, length: int) -> list[tuple[int, int]]:
    """Row and first position of each place, the first place first."""
    end = length - _size(length)
    return list(dict.fromkeys([(0, 0), (0, end), (rows // 2, end // 2), (rows - 1, 0), (rows - 1, end)]))


def _size(length: int) -> int:
    return max(2, length // PART)


def _at(full: Batch, row: int, begin: int) -> Batch:
    """A batch with the first ids of its first row as a document at a place, which alone is supervised."""
    length = full.tokens.shape[1]
    end = begin + _size(length)
    there = Batch(*(np.array(x) for x in full))
    ids = np.append(full.tokens[0, : _size(length)], full.labels[0, _size(length) - 1])
    t = np.arange(length, dtype=np.int32)
    part = (t >= begin).astype(np.int32) + (t >= end)
    there.tokens[row, begin:end], there.labels[row, begin:end] = ids[:-1], ids[1:]
    there.loss_mask[:] = False
    there.loss_mask[row, begin:end] = True
    there.segments[row], there.positions[row] = part + 1, t - np.array([0, begin, end], np.int32)[part]
    return there


def _norms(tree: Any) -> dict[str, float]:
    """Norms of the leaves, by path."""
    return {path: math.sqrt(dot(leaf, leaf)) for path, leaf in named_leaves(tree).items()}


WHOLE: tuple[Callable[[Bench], Probe], ...] = (gradient_of_places,)
"""The probes of whole batches."""
