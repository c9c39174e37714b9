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
from jaxlm.train.probes_reference import reference

NOISE = 4  # times the difference at a shift of one position: what rounding may do at the longest


def _count(different: np.ndarray) -> str:
    return f"{int(different.sum())} of {different.size} differ"


def _others(bench: Bench, tokens: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`tokens` with other ids in the places `where`."""
    return np.where(where, (tokens + 1) % bench.cfg.model.vocab_size, tokens).astype(np.int32)


def ids_in_range(bench: Bench) -> Probe:
    """Every id, and every supervised label, is an id of the tokenizer. JAX clamps what is not, without a word."""
    vocab = bench.cfg.model.vocab_size
    labels = bench.full.labels[bench.full.loss_mask]
    low = min(int(bench.full.tokens.min()), int(labels.min(initial=0)))
    high = max(int(bench.full.tokens.max()), int(labels.max(initial=0)))
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
    """Other tokens from t on leave the logits before t as they are, bit by bit, over the whole trained context."""
    name, batch = "causality", bench.random_batch(full=True)
    rows, length = batch.tokens.shape
    turns = math.ceil(3 / rows)  # three cuts at least, each row another one
    expected = f"no logit before a changed token moves in {length} positions"
    before = bench.logits(batch)
    for cuts in np.linspace(1, length - 1, turns * rows).astype(int).reshape(turns, rows):
        suffix = np.arange(length) >= cuts[:, None]
        different = bench.differ(before, bench.logits(batch._replace(tokens=_others(bench, batch.tokens, suffix))))
        if different[~suffix].any():
            return Probe(name, False, expected, _count(different[~suffix]))
        if not different[suffix].any():
            return Probe(name, False, expected, "the suffix itself has no effect")
    return Probe(name, True, expected, f"0 differ at {turns * rows} cuts")


def window(bench: Bench) -> Probe:
    """With a sliding window of W in L layers, another first token moves logits up to position L * (W - 1), none after."""
    name, cfg = "window", bench.cfg.model
    batch = bench.random_batch(full=True)
    reach = cfg.n_layers * (cfg.window - 1)
    if not cfg.window or reach >= batch.tokens.shape[1] - 1:
        word = "the window reaches over the whole context" if cfg.window else "no window"
        return Probe(name, True, word, word)
    first = np.arange(batch.tokens.shape[1])[None, :] == 0
    other = batch._replace(tokens=_others(bench, batch.tokens, first))
    different = bench.differ(bench.logits(batch), bench.logits(other))
    beyond, inside = different[:, reach + 1 :], different[:, min(1, reach) : reach + 1]
    found = _count(beyond) if inside.any() else "the first token moves nothing"
    return Probe(name, not beyond.any() and bool(inside.any()), f"no logit past position {reach} moves", found)


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

    Angles in bfloat16 pass at short positions and fail here: 255 and 256 are the neighbours of 258. The parameters are
    initial ones in every run: training makes queries and keys larger, up to where rounding moves logits as much as a fault
    does. The yardstick of rounding is what a shift by one position changes, where hardly a fault shows yet.
    """
    name, cfg = "rope_shift_invariance", bench.cfg.model
    if cfg.pos != "rope":
        return Probe(name, True, "no rotary positions", "no rotary positions")
    length, dtype = bench.length, bench.cfg.train.precision
    q, k = (jnp.asarray(bench.rng.standard_normal((1, length, 1, cfg.head_width)), dtype) for _ in range(2))

    def scores(first: int) -> np.ndarray:
        positions = jnp.arange(first, first + length, dtype=jnp.int32)[None, :]
        angles = rope_angles(positions, cfg.head_width, theta=cfg.rope_theta)
        turned = [np.asarray(rotate(x, angles, pairing=cfg.rope_pairing), np.float64)[0, :, 0] for x in (q, k)]
        return turned[0] @ turned[1].T / math.sqrt(cfg.head_width)

    last, base = cfg.context_length - length, scores(0)
    error, noise = (float(np.abs(scores(shift) - base).max()) for shift in (last, 1))
    # float32 angles at position p are off by p * 2**-24 radians; bfloat16 rounds each rotated component by 2**-9.
    allowed = max({"float32": 2e-3 + last * 2.0**-22, "bfloat16": 0.1, "float16": 2e-2}[dtype], NOISE * noise)
    if error > allowed:
        return Probe(name, False, f"scores at {last}.. as at 0.., to {allowed:.2g}", f"off by {error:.2g}")
    batch = bench.random_batch()
    params = bench.initial_params()
    base = bench.forward(batch, params)[0]
    size = max(float(np.abs(base[..., : cfg.vocab_size]).max()), 1e-9)

    def moved(shift: int) -> float:
        shifted = batch._replace(positions=batch.positions + np.int32(shift))
        return float(np.abs(bench.forward(shifted, params)[0] - base).max()) / size

    error, noise = moved(last), moved(1)
    allowed = max(bench.tolerance, last * 2.0**-20 if dtype == "float32" else 0.0, NOISE * noise)
    return Probe(name, bool(error <= allowed), f"logits at {last}.. as at 0.., to {allowed:.2g}", f"off by {error:.2g}")


def evaluation_deterministic(bench: Bench) -> Probe:
    """The same batch scored twice gives the same bits: no state. So does a config without dropout: none when scoring."""
    first, second = bench.forward(bench.batch)[1], bench.forward(bench.batch)[1]
    different, expected = first != second, "equal bits"
    if bench.cfg.model.dropout:
        different, expected = different | (first != bench.score_without_dropout(bench.batch)), "equal bits, without dropout too"
    return Probe("evaluation_deterministic", not different.any(), expected, _count(different))


FORWARD: tuple[Callable[[Bench], Probe], ...] = (
    ids_in_range,
    labels_shifted_by_one,
    causality,
    window,
    documents_isolated,
    rope_shift_invariance,
    evaluation_deterministic,
    reference,
)
"""The probes that a trained model passes as well."""


def batch_is_pure(make: Callable[[int], Batch], step: int) -> Probe:
    """The batch of a step is the same when it is asked for again, and another than that of the next step."""
    first, again, following = make(step), make(step), make(step + 1)
    same = all((a == b).all() for a, b in zip(first, again, strict=True))
    moves = bool((first.tokens != following.tokens).any())
    found = ("equal" if same else "different") + (", next one different" if moves else ", next one equal")
    return Probe("batch_is_pure", same and moves, "equal, next one different", found)
