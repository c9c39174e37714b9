"""Probes of what flows forward: batch, mask, positions, loss.

Axes: B batch, T position, N head, H head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxlm.data import Batch
from jaxlm.model.layers import rope_angles, rotate
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.state import policy


def _count(different: np.ndarray) -> str:
    return f"{int(different.sum())} of {different.size} differ"


def ids_in_range(bench: Bench) -> Probe:
    """Every id, and every supervised label, is an id of the tokenizer. JAX clamps what is not, without a word."""
    vocab = bench.cfg.model.vocab_size
    labels = bench.batch.labels[bench.batch.loss_mask]
    low = min(int(bench.batch.tokens.min()), int(labels.min(initial=0)))
    high = max(int(bench.batch.tokens.max()), int(labels.max(initial=0)))
    return Probe("ids_in_range", low >= 0 and high < vocab, f"ids in 0..{vocab - 1}", f"ids in {low}..{high}")


def labels_shifted_by_one(bench: Bench) -> Probe:
    """The label of position t is the token of t + 1, and the loss of t reads the logits of t and the label of t."""
    name, batch = "labels_shifted_by_one", bench.batch
    wrong = (batch.labels[:, :-1] != batch.tokens[:, 1:]) & batch.loss_mask[:, :-1]
    if wrong.any():
        return Probe(name, False, "labels[t] = tokens[t + 1]", _count(wrong))
    logits, nll = bench.forward(batch)
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1)
    log_sum = peak + np.log(np.exp(wide - peak[..., None]).sum(axis=-1))
    picked = np.take_along_axis(wide, batch.labels[..., None].clip(0), axis=-1)[..., 0]
    error = np.abs(np.where(batch.loss_mask, log_sum - picked, 0.0) - nll).max()
    return Probe(name, bool(error < 1e-3), "loss[t] = -log softmax(logits[t])[labels[t]] to 1e-3", f"off by {error:.2g}")


def causality(bench: Bench) -> Probe:
    """Other tokens from t on leave the logits before t as they are, bit by bit."""
    batch = bench.random_batch()
    rows, length = batch.tokens.shape
    cuts = np.linspace(1, length - 1, rows).astype(int)
    suffix = np.arange(length) >= cuts[:, None]
    other = np.where(suffix, (batch.tokens + 1) % bench.cfg.model.vocab_size, batch.tokens)
    before, after = bench.forward(batch)[0], bench.forward(batch._replace(tokens=other.astype(np.int32)))[0]
    different = (before != after).any(axis=-1)
    leaked, blind = different[~suffix], not different[suffix].any()
    found = "the suffix itself has no effect" if blind else _count(leaked)
    return Probe("causality", not leaked.any() and not blind, "no logit before a changed token moves", found)


def documents_isolated(bench: Bench) -> Probe:
    """Another first document leaves the logits of the second as they are, bit by bit; alone in a row they are the same."""
    boundary = bench.length // 2
    batch = bench.random_batch(boundary)
    tokens = batch.tokens.copy()
    tokens[:, :boundary] = (tokens[:, :boundary] + 1) % bench.cfg.model.vocab_size
    packed = bench.forward(batch)[0]
    moved = (packed != bench.forward(batch._replace(tokens=tokens))[0]).any(axis=-1)[:, boundary:]
    if moved.any():
        return Probe("documents_isolated", False, "no logit of a document moves with another document", _count(moved))
    alone = bench.random_batch()
    length = bench.length - boundary
    tokens = batch.tokens.copy()
    tokens[:, :length] = batch.tokens[:, boundary:]
    single = bench.forward(alone._replace(tokens=tokens))[0][:, :length, : bench.cfg.model.vocab_size]
    inside = packed[:, boundary:, : bench.cfg.model.vocab_size]
    error = np.abs(single - inside).max() / max(float(np.abs(single).max()), 1e-9)
    expected = f"logits in a pack = logits alone, to {bench.tolerance:g}"
    return Probe("documents_isolated", bool(error <= bench.tolerance), expected, f"off by {error:.2g}")


def rope_shift_invariance(bench: Bench) -> Probe:
    """Scores depend on distance alone, also at the longest position, in the run's dtype.

    Angles in bfloat16 pass at short positions and fail here: 255 and 256 are the neighbours of 258.
    """
    name, cfg = "rope_shift_invariance", bench.cfg.model
    if cfg.pos != "rope":
        return Probe(name, True, "no rotary positions", "no rotary positions")
    length, dtype = bench.length, policy(bench.cfg).compute
    q, k = (jnp.asarray(bench.rng.standard_normal((1, length, 1, cfg.head_width)), dtype) for _ in range(2))

    def scores(first: int) -> np.ndarray:
        positions = jnp.arange(first, first + length, dtype=jnp.int32)[None, :]
        angles = rope_angles(positions, cfg.head_width, theta=cfg.rope_theta)
        turned = [np.asarray(rotate(x, angles, pairing=cfg.rope_pairing), np.float64)[0, :, 0] for x in (q, k)]
        return turned[0] @ turned[1].T / math.sqrt(cfg.head_width)

    last = cfg.context_length - length
    error = np.abs(scores(last) - scores(0)).max()
    # float32 angles at position p are off by p * 2**-24 radians; bfloat16 rounds each rotated component by 2**-9.
    allowed = {"float32": 2e-3 + last * 2.0**-22, "bfloat16": 0.1, "float16": 2e-2}[dtype]
    if error > allowed:
        return Probe(name, False, f"scores at {last}.. as at 0.., to {allowed:.2g}", f"off by {error:.2g}")
    batch = bench.random_batch()
    base = bench.forward(batch)[0]
    moved = bench.forward(batch._replace(positions=batch.positions + np.int32(last)))[0]
    error = np.abs(base - moved).max() / max(float(np.abs(base[..., : cfg.vocab_size]).max()), 1e-9)
    allowed = max(bench.tolerance, last * 2.0**-20 if dtype == "float32" else 0.0)
    return Probe(name, bool(error <= allowed), f"logits at {last}.. as at 0.., to {allowed:.2g}", f"off by {error:.2g}")


def evaluation_deterministic(bench: Bench) -> Probe:
    """The same batch scored twice gives the same bits: no dropout, no state."""
    first, second = bench.forward(bench.batch)[1], bench.forward(bench.batch)[1]
    return Probe("evaluation_deterministic", bool((first == second).all()), "equal bits", _count(first != second))


def initial_loss(bench: Bench) -> Probe:
    """An untrained model knows nothing: its loss is near ln V.

    Logits of variance s**2 add s**2 / 2; with normed activations and an embedding of standard deviation `init_std`,
    s = init_std * sqrt(D).
    """
    cfg = bench.cfg.model
    nll = bench.forward(bench.batch)[1]
    loss = float(nll.sum()) / int(bench.batch.loss_mask.sum())
    spread = cfg.init_std**2 * cfg.d_model
    low, high = math.log(cfg.vocab_size) - 0.5, math.log(cfg.vocab_size) + spread / 2 + 0.5
    return Probe("initial_loss", low <= loss <= high, f"ln V = {math.log(cfg.vocab_size):.2f} (to {high:.2f})", f"{loss:.2f}")


FORWARD: tuple[Callable[[Bench], Probe], ...] = (
    ids_in_range,
    labels_shifted_by_one,
    causality,
    documents_isolated,
    rope_shift_invariance,
    evaluation_deterministic,
)
"""The probes that a trained model passes as well; `initial_loss` is for a fresh one."""


def batch_is_pure(make: Callable[[int], Batch], step: int) -> Probe:
    """The batch of a step is the same when it is asked for again, and another than that of the next step."""
    first, again, following = make(step), make(step), make(step + 1)
    same = all((a == b).all() for a, b in zip(first, again, strict=True))
    moves = bool((first.tokens != following.tokens).any())
    found = ("equal" if same else "different") + (", next one different" if moves else ", next one equal")
    return Probe("batch_is_pure", same and moves, "equal, next one different", found)
