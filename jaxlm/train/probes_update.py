"""Probes of what flows back: gradients, accumulation, decay, and the gate before the optimizer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.data import Batch
from jaxlm.model import Params
from jaxlm.model.spec import named_leaves
from jaxlm.optim.reference import learning_rates
from jaxlm.parallel import processes
from jaxlm.train import step
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.probes_dropout import dropout_rate
from jaxlm.train.probes_rule import RULES, at_count
from jaxlm.train.state import TrainState, policy, put_batch
from jaxlm.watch import Telemetry, first_nonfinite


def _equal_bits(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(processes.whole(x), processes.whole(y), equal_nan=True) for x, y in leaves)


def masked_labels(bench: Bench) -> Probe:
    """Labels that the mask leaves out change no bit of the loss or of a gradient."""
    mask = bench.batch.loss_mask.copy()
    mask[:, ::3] = False
    masked = bench.batch._replace(loss_mask=mask)
    other = np.where(mask, masked.labels, (masked.labels + 1) % bench.cfg.model.vocab_size).astype(np.int32)
    first, second = bench.gradients(masked), bench.gradients(masked._replace(labels=other))
    same = _equal_bits((first.sums, first.grads), (second.sums, second.grads))
    count = int(first.sums.count) == int(mask.sum())
    found = "equal bits" if same else f"loss {float(first.sums.nll)!r} and {float(second.sums.nll)!r}"
    expected = f"equal bits, {int(mask.sum())} labels"
    return Probe("masked_labels", same and count, expected, f"{found}, {int(first.sums.count)} labels")


def accumulation(bench: Bench) -> Probe:
    """Micro-batches of ragged masks give the gradient and the loss of the whole batch."""
    rows, length = bench.batch.tokens.shape
    keep = np.arange(length)[None, :] < np.linspace(length, length // 4, rows).astype(int)[:, None]
    ragged = bench.batch._replace(loss_mask=bench.batch.loss_mask & keep)
    whole, parts = bench.gradients(ragged, 1), bench.gradients(ragged, bench.accum)
    leaves = zip(jax.tree.leaves(whole.grads), jax.tree.leaves(parts.grads), strict=True)
    arrays = [(processes.whole(a).astype(np.float64), processes.whole(b).astype(np.float64)) for a, b in leaves]
    squares = [(float(np.square(a - b).sum()), float(np.square(a).sum())) for a, b in arrays]
    error = (sum(d for d, _ in squares) / max(sum(s for _, s in squares), 1e-30)) ** 0.5
    same_count = float(whole.sums.count) == float(parts.sums.count)
    expected = f"gradients of {bench.accum} micro-batches = of one batch, to {bench.tolerance:g}"
    return Probe("accumulation", error <= bench.tolerance and same_count, expected, f"off by {error:.2g}")


def decay_touches_declared(bench: Bench) -> Probe:
    """Without a gradient, exactly the declared leaves move: those whose name `optim.no_decay` does not match."""
    cfg = bench.cfg.optim
    ones = jax.tree.map(jnp.ones_like, bench.params)
    state = bench.state(ones)
    made = cfg.schedule_from + max(cfg.warmup_steps - 1, 0)  # updates: the next one is the first at the peak
    state = at_count(state, made)
    gradients = bench.gradients(bench.batch)
    still = gradients._replace(grads=jax.tree.map(jnp.zeros_like, gradients.grads))
    after, _ = bench.apply(state, still)
    moved = {name for name, leaf in named_leaves(after.params).items() if (processes.whole(leaf) != 1.0).any()}
    names = named_leaves(ones)
    rate = cfg.lr if cfg.warmup_steps else float(learning_rates(cfg, bench.cfg.train.steps, np.array(made)))
    # Below 1 the float32 numbers are 2**-24 apart, so 1 - x rounds to 1 up to half of that (a tie goes to 1, the even one).
    visible = cfg.weight_decay * rate > 2.0**-25
    exempt = {name for name in names if cfg.no_decay and re.search(cfg.no_decay, name)}
    declared = (set(names) - exempt) if visible else set()
    wrong = sorted(moved ^ declared)
    found = "those" if not wrong else ", ".join(wrong[:4]) + " otherwise"
    return Probe("decay_touches_declared", not wrong, f"{len(declared)} of {len(names)} leaves decay", found)


def _poisoned(leaf: jax.Array) -> jax.Array:
    """`leaf` with its first element NaN, laid out as before."""
    array = np.array(processes.whole(leaf))
    array.flat[0] = np.nan
    return processes.put(array, leaf.sharding)


def planted_nan(bench: Bench) -> Probe:
    """One NaN gradient is seen and named, changes nothing, and the next step updates again."""
    name = "planted_nan"
    gradients = bench.gradients(bench.batch)
    path = max(named_leaves(gradients.grads))
    leaves = {
        leaf_name: _poisoned(leaf) if leaf_name == path else leaf for leaf_name, leaf in named_leaves(gradients.grads).items()
    }
    bad = gradients._replace(grads=jax.tree.unflatten(jax.tree.structure(gradients.grads), leaves.values()))
    state = bench.state(bench.params)
    held, telemetry = bench.apply(state, bad)
    seen = not bool(telemetry.finite) and first_nonfinite(processes.whole(telemetry)).startswith(path)
    kept = _equal_bits((held.params, held.opt_state), (state.params, state.opt_state))
    after, healthy = bench.apply(held, gradients)
    moves = bool(healthy.finite) and not _equal_bits(after.params, state.params)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after.params))
    found = {"seen": seen, "state kept": kept, "next step updates": moves, "state finite": finite}
    missing = ", ".join(word for word, ok in found.items() if not ok)
    return Probe(name, not missing, "NaN seen, state kept, next step updates", f"not: {missing}" if missing else "all of it")


def one_step(bench: Bench, *, done: int = 0, batch: Batch | None = None) -> tuple[TrainState, Telemetry]:
    """`train_step` from a fresh state around the parameters, on the whole batch or another of its shape. done: steps before."""
    state = bench.state(jax.tree.map(jnp.copy, bench.params))  # copies, since the step donates them
    state = dataclasses.replace(state, step=jax.device_put(np.full((), done, np.int32), state.step.sharding))
    if policy(bench.cfg).scales_loss:  # the first scale may overflow: such a step is skipped, rightly, and shows nothing
        one = jax.device_put(np.ones((), np.float32), state.loss_scale.scale.sharding)
        state = dataclasses.replace(state, loss_scale=dataclasses.replace(state.loss_scale, scale=one))
    return step.train_step(state, put_batch(batch or bench.full, bench.cfg, bench.mesh))


def _fetched(bench: Bench, *, done: int = 0) -> tuple[TrainState, Telemetry]:
    """The same on the host."""
    after, telemetry = one_step(bench, done=done)
    return processes.whole((dataclasses.replace(after, key=jax.random.key_data(after.key)), telemetry))


def scored(bench: Bench, batch: Batch, *, params: Params | None = None, cfg: RunConfig | None = None) -> tuple[float, float]:
    """Mean loss of a whole batch, and mean of its squares, by `score_step`, in micro-batches, as validation calls it.

    params, cfg: the run's by default.
    """
    params, cfg = bench.params if params is None else params, cfg or bench.cfg
    rows = len(batch.tokens) // cfg.train.grad_accum
    total = squares = 0.0
    for first in range(0, len(batch.tokens), rows):
        micro = Batch(*(x[first : first + rows] for x in batch))
        nll = processes.whole(step.score_step(params, put_batch(micro, cfg, bench.mesh), cfg)).astype(np.float64)
        total, squares = total + float(nll.sum()), squares + float(np.square(nll).sum())
    labels = int(batch.loss_mask.sum())
    return total / labels, squares / labels


def train_step(bench: Bench) -> Probe:
    """The compiled step that trains, on a whole batch: twice the same bits, counted, and its loss and the spread of
    it are those scored."""
    (after, telemetry), again = _fetched(bench), _fetched(bench)
    repeated = _equal_bits((after, telemetry), again)
    del again
    labels, loss = int(bench.full.loss_mask.sum()), float(telemetry.loss)
    squares = float(telemetry.loss_spread) ** 2 + loss**2  # their mean, as the step has summed them
    # Dropout moves the loss of a training step.
    plain, plain_squares = (loss, squares) if bench.cfg.model.dropout else scored(bench, bench.full)
    # Of N elements one moves by update_norm / sqrt(N) at least; float32 loses what is below 2**-24 of the element.
    leaves = jax.tree.leaves(bench.params)
    mean_move = float(telemetry.update_norm) / math.sqrt(sum(leaf.size for leaf in leaves))
    visible = mean_move > 2.0**-24 * max(float(jnp.abs(leaf).max()) for leaf in leaves)
    found = {
        "equal bits": repeated,
        f"step 1 (but {int(after.step)})": int(after.step) == int(telemetry.step) == 1,
        "finite": bool(telemetry.finite) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params)),
        "an update": mean_move > 0 or float(telemetry.lr) == 0,
        "parameters moved": not (visible and _equal_bits(after.params, bench.params)),
        f"labels (but {float(telemetry.labels):.0f})": abs(float(telemetry.labels) - labels) <= 1e-6 * labels,
        f"loss (but {loss:.4f})": abs(loss - plain) <= bench.tolerance * max(plain, 1.0),
        f"mean square {plain_squares:.4f} of the loss (but {squares:.4f})": abs(squares - plain_squares)
        <= bench.tolerance * max(plain_squares, 1.0),
    }
    missing = ", ".join(word for word, ok in found.items() if not ok)
    expected = f"equal bits twice, step 1, finite, moved, {labels} labels, loss {plain:.4f}"
    return Probe("train_step", not missing, expected, f"not: {missing}" if missing else "all of it")


def dropout_fresh(bench: Bench) -> Probe:
    """The same state and batch give another loss in the next step: dropout draws anew. A key that is used again draws the
    same units in every step."""
    name = "dropout_fresh"
    if not bench.cfg.model.dropout:
        return Probe(name, True, "no dropout", "no dropout")
    first, second = (float(_fetched(bench, done=done)[1].loss) for done in (0, 1))
    return Probe(name, first != second, "another loss in the next step", f"{first!r} and {second!r}")


UPDATE: tuple[Callable[[Bench], Probe], ...] = (
    masked_labels,
    accumulation,
    decay_touches_declared,
    planted_nan,
    train_step,
    dropout_fresh,
    dropout_rate,
    *RULES,
)
"""The probes of training; an evaluation has no use for them."""
