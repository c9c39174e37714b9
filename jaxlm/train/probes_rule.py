"""Probes of what a step promises as arithmetic: the gradient is that of the loss, the update is AdamW's, at
the rate of the schedule.

All are compared with something that shares no code with them: differences of the loss, and formulas in NumPy float64.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.config.schema import OptimConfig
from jaxlm.model.spec import named_leaves
from jaxlm.optim import schedule_of
from jaxlm.optim.reference import learning_rates, same_rate
from jaxlm.parallel import processes
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.state import TrainState

# Of the loss, in float32: by how much it is moved, and what rounding does to a mean over some hundred labels.
MOVED, NOISE = 2e-3, 4e-6
LARGEST = 0.05  # share of a parameter that it is moved by, at most
AGREE = 0.15  # relative difference of a derivative and a difference, over rounding: what curvature may do
FOLLOWED = 512  # elements of a leaf that are followed through the update, drawn from all over it
CURVED = 0.25  # of a disagreement: what half the shift may change of it, for it to be a verdict
PLACES = 33  # updates at which the schedule is asked, evenly spaced
EXACT = 2e-3  # relative difference of an update in float32 and in float64


def gradient_of_loss(bench: Bench) -> Probe:
    """The loss falls along the gradient as fast as its norm says, and moves with each parameter's size as the gradient says.

    Sees sums for means, rows that are left out, and branches from which no gradient comes back. Costs two forward passes of
    the small batch for each parameter's leaf. Where rounding hides what a leaf does, that leaf gives no verdict; a run in
    half precision is looked at along its gradient only, by the losses of float32, for which one program more is compiled.
    Nor is there a verdict where the loss is so curved that half the shift gives another slope; the result says how many
    directions agree, and of how many. Where logits or scores have caps the same is asked along the gradient of parameters that
    make them as large as those.
    """
    found = _of_loss(bench)
    if not found.passed or not (bench.cfg.model.logit_softcap or bench.cfg.model.attention_softcap):
        return found
    capped = _of_loss(_at_the_caps(bench), leaves=False, where=" where the caps bend")
    return found._replace(found=f"{found.found}; where the caps bend {capped.found}") if capped.passed else capped


def _of_loss(bench: Bench, *, leaves: bool = True, where: str = "") -> Probe:
    """`gradient_of_loss` at the parameters of the bench. leaves: also along each leaf, one of which has to agree; without, the
    only direction may give no verdict, as where saturated scores are too curved."""
    name, batch = "gradient_of_loss", bench.batch
    grads = named_leaves(bench.gradients(batch).grads)
    params = named_leaves(bench.params)
    norm = math.sqrt(sum(dot(g, g) for g in grads.values()))
    half = bench.cfg.train.precision != "float32"
    train = dataclasses.replace(bench.cfg.train, precision="float32")
    other = Bench(dataclasses.replace(bench.cfg, train=train), bench.mesh, bench.params, bench.full) if half else bench
    base = _loss(other, params)
    noise, target = NOISE * max(base, 1.0), MOVED * max(base, 1.0)
    if not math.isfinite(norm) or not norm:
        return Probe(name, False, "a gradient that is finite and not 0", f"a norm of {norm}")
    along = {leaf: g * (target / norm**2) for leaf, g in grads.items()}
    directions: list[tuple[str, dict[str, Any], float]] = [("the gradient", along, target)]
    for leaf, p in () if half or not leaves else params.items():
        size, slope = math.sqrt(dot(p, p)), dot(grads[leaf], p)
        if size:
            factor = min(LARGEST, target / abs(slope)) if slope else LARGEST
            directions.append((leaf, {leaf: p * factor}, slope * factor))

    def difference(moved: dict[str, Any], size: float) -> float:
        """By how much the loss moves, per `size`: the half of what both ways differ."""
        ways = ({**params, **{k: params[k] + sign * size * d for k, d in moved.items()}} for sign in (1.0, -1.0))
        up, down = (_loss(other, way) for way in ways)
        return (up - down) / (2 * size)

    agreed = 0
    for words, moved, expected in directions:
        verdict, found = agree(functools.partial(difference, moved), expected, noise)
        if verdict is False:
            why = f"a loss that moves by {expected:.3g} along {words}{where}, as the gradient says"
            return Probe(name, False, why, f"one that moves by {found:.3g}")
        agreed += verdict is True
    said = f"{agreed} of {len(directions)} directions agree, the others give no verdict"
    return Probe(name, agreed > 0 or not leaves, f"differences of the loss as the gradient says{where}", said)


def agree(difference: Callable[[float], float], expected: float, noise: float) -> tuple[bool | None, float]:
    """Whether the loss moves as a gradient says, and how it moves. difference: of the loss, per share of a shift, given the
    share. None: no verdict, since rounding hides both, or curvature or rounding does as much as what is looked for."""
    found = difference(1.0)
    off = abs(found - expected)
    if off > AGREE * max(abs(expected), abs(found)) + noise:
        return (None if abs(difference(0.5) - found) > CURVED * off else False), found
    return (True if max(abs(expected), abs(found)) > noise else None), found


def _at_the_caps(bench: Bench) -> Bench:
    """The same with parameters that make logits and scores as large as their caps, where these have another slope than 1."""
    model = bench.cfg.model
    size = float(np.square(bench.forward(bench.batch)[0][..., : model.vocab_size], dtype=np.float64).mean() ** 0.5)
    by = {"embed": max(1.0, model.logit_softcap / size) if model.logit_softcap and size else 1.0}
    by["head"] = by["embed"]
    by |= {f"blocks/{word}": max(1.0, model.attention_softcap) ** 0.5 for word in ("wq", "wk", "q_norm", "k_norm")}
    leaves = [leaf * np.float32(by.get(path, 1.0)) for path, leaf in named_leaves(bench.params).items()]
    larger = copy.copy(bench)
    larger.params = jax.tree.unflatten(jax.tree.structure(bench.params), leaves)
    return larger


def dot(a: Any, b: Any) -> float:
    """The sum of products of two arrays of one shape, in float32."""
    return float(processes.whole(jax.numpy.sum(a.astype(jax.numpy.float32) * b.astype(jax.numpy.float32))))


def _loss(bench: Bench, params: dict[str, Any]) -> float:
    """The objective of the small batch, nats per label, summed in float64."""
    tree = jax.tree.unflatten(jax.tree.structure(bench.params), params.values())
    logits, nll = bench.forward(bench.batch, tree)
    mask, z_loss = bench.batch.loss_mask, bench.cfg.train.z_loss
    total = float(nll[mask].astype(np.float64).sum())
    if z_loss:
        wide = logits[mask][:, : bench.cfg.model.vocab_size].astype(np.float64)
        peak = wide.max(axis=-1)
        total += z_loss * float(np.square(peak + np.log(np.exp(wide - peak[:, None]).sum(axis=-1))).sum())
    return total / int(mask.sum())


def update_rule(bench: Bench) -> Probe:
    """Four updates from a fresh state, the first of a gradient that is clipped, the last ones halfway down the schedule and at
    its end, are those of AdamW as the config describes it.

    Followed in some elements of every leaf, in float64. Sees clipping, bias correction, epsilon, betas, decay and rate that are
    not the config's. No program is compiled for it that other probes do not need.
    """
    name, cfg = "update_rule", bench.cfg.optim
    gradients = bench.gradients(bench.batch)
    norm = math.sqrt(sum(dot(g, g) for g in jax.tree.leaves(gradients.grads)))
    limit = cfg.clip_norm or 1.0
    state = bench.state(bench.params)
    rule = {leaf: _Rule(cfg, leaf, _some(p)) for leaf, p in named_leaves(state.params).items()}
    steps = bench.cfg.train.steps
    counts = (0, min(1, steps - 1), _halfway(cfg, steps), steps - 1)
    for count, size in zip(counts, (2.0 * limit, -0.3 * limit, 0.5 * limit, 0.4 * limit), strict=True):
        state = at_count(state, count)
        given = jax.tree.map(lambda g, size=size: g * (size / norm), gradients.grads)
        before = {leaf: _some(p) for leaf, p in named_leaves(state.params).items()}
        state, _ = bench.apply(state, gradients._replace(grads=given))
        rate = float(learning_rates(cfg, steps, np.array(count)))
        clip = min(1.0, limit / abs(size)) if cfg.clip_norm else 1.0
        followed = {leaf: _some(g) for leaf, g in named_leaves(given).items()}
        for leaf, p in named_leaves(state.params).items():
            expected = rule[leaf].update(followed[leaf] * clip, before[leaf], count + 1, rate)
            moved = _some(p) - before[leaf]
            # What is added to a parameter is rounded to the parameter's last bit.
            allowed = EXACT * np.abs(expected).max() + 2.0**-23 * np.abs(before[leaf])
            if (np.abs(moved - expected) > allowed).any():
                worst = np.unravel_index(np.argmax(np.abs(moved - expected) - allowed), moved.shape)
                why = f"update {count + 1} of {leaf} as AdamW says, {expected[worst]:.6g}"
                return Probe(name, False, why, f"{moved[worst]:.6g}")
    return Probe(name, True, f"{len(counts)} updates as AdamW says", f"those of {len(rule)} leaves")


def at_count(state: TrainState, count: int) -> TrainState:
    """`state` after `count` updates, as its optimizer counts them; moments and parameters as they are."""
    adam = state.opt_state[-1]
    made = jax.device_put(np.full((), count, np.int32), adam.count.sharding)
    return dataclasses.replace(state, opt_state=(*state.opt_state[:-1], dataclasses.replace(adam, count=made)))


def _halfway(cfg: OptimConfig, steps: int) -> int:
    """The count of updates whose next has the rate nearest to the mean of the peak and the last one, past the warm-up."""
    counts = np.arange(min(cfg.schedule_from + max(cfg.warmup_steps - 1, 0), steps - 1), steps)
    rates = learning_rates(cfg, steps, counts)
    return int(counts[np.abs(rates - (rates[0] + rates[-1]) / 2).argmin()])


def schedule(bench: Bench) -> Probe:
    """The rate is the config's, in float64: at the first update, in the warm-up, at its end, on the way and at the last one."""
    cfg, steps = bench.cfg.optim, bench.cfg.train.steps
    begin, warm = cfg.schedule_from, cfg.warmup_steps
    places = np.concatenate([np.linspace(0, steps - 1, PLACES), begin + np.array([-1, 0, warm / 2, warm - 1, warm])])
    counts = np.unique(places.astype(np.int32).clip(0, steps - 1))
    rates, found = learning_rates(cfg, steps, counts), np.asarray(schedule_of(cfg, steps)(counts), np.float64)
    wrong = np.flatnonzero(~same_rate(found, rates, cfg.lr))
    if wrong.size:
        first = int(wrong[0])
        return Probe("schedule", False, f"a rate of {rates[first]:.6g} in update {counts[first] + 1}", f"{found[first]:.6g}")
    return Probe("schedule", True, "the rates of the config's schedule", f"those, at {len(counts)} of {steps} updates")


def _some(leaf: jax.Array) -> np.ndarray:
    """Elements of what this process's first device holds of a leaf, float64; of gradients, which lie as their parameters do,
    the same ones."""
    held = np.asarray(leaf.addressable_shards[0].data).reshape(-1)
    chosen = np.random.default_rng(held.size).integers(held.size, size=FOLLOWED) if held.size > FOLLOWED else slice(None)
    return held[chosen].astype(np.float64)


class _Rule:
    """AdamW on an array: Loshchilov & Hutter 2019, algorithm 2, with the decay multiplied by the rate."""

    def __init__(self, cfg: OptimConfig, leaf: str, like: np.ndarray):
        self.cfg, self.m, self.v = cfg, np.zeros_like(like), np.zeros_like(like)
        self.decay = 0.0 if cfg.no_decay and re.search(cfg.no_decay, leaf) else cfg.weight_decay

    def update(self, g: np.ndarray, p: np.ndarray, n: int, rate: float) -> np.ndarray:
        """What the n-th update adds to `p`."""
        self.m = self.cfg.b1 * self.m + (1 - self.cfg.b1) * g
        self.v = self.cfg.b2 * self.v + (1 - self.cfg.b2) * g * g
        m, v = self.m / (1 - self.cfg.b1**n), self.v / (1 - self.cfg.b2**n)
        return -rate * (m / (np.sqrt(v) + self.cfg.eps) + self.decay * p)


RULES: tuple[Callable[[Bench], Probe], ...] = (gradient_of_loss, update_rule, schedule)
"""The probes of a step's arithmetic."""
