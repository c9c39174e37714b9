"""Faults of attention: masks, windows, positions, heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.faults.fault import Fault, Patch

PACKED = "jaxlm.model.attention:packed"
ANGLES = "jaxlm.model.transformer:rope_angles"
ATTENTION = "jaxlm.model.attention:attention"


def _ranges(change: Callable) -> Patch:
    """The ranges of keys of packed rows are others. change: takes them, segments and positions."""
    return Patch(PACKED, lambda real: lambda s, p, *, window=0: change(real(s, p, window=window), s, p))


def _one_ahead(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(end_BT=ranges.end_BT + 1)


def _ahead_far_out(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(end_BT=ranges.end_BT + (positions >= 40))


def _across_documents(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(start_BT=jnp.zeros_like(ranges.start_BT))


def _from_the_fourth_on(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(start_BT=jnp.where(segments >= 4, 0, ranges.start_BT))


def _in_two_tables(real: Callable) -> Callable:
    """Positions from 32 on are read from a table that begins 16 too late."""

    def angles(positions_BT: jax.Array, width: int, *, theta: float) -> Any:
        return real(positions_BT + 16 * (positions_BT >= 32), width, theta=theta)

    return angles


def _coarse(x: jax.Array) -> jax.Array:
    """Rounded to bfloat16; a cast there and back the compiler takes away."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7)


def _coarse_positions(real: Callable) -> Callable:
    return lambda positions_BT, width, *, theta: real(_coarse(positions_BT), width, theta=theta)


def _tiled_heads(real: Callable) -> Callable:
    """Query head n reads key/value head n % K, not n // (N / K)."""

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, **options: Any) -> Any:
        heads = jnp.arange(q.shape[2]) % k.shape[2]
        return real(q, jnp.take(k, heads, axis=2), jnp.take(v, heads, axis=2), ranges, **options)

    return attention


def _unscaled(real: Callable) -> Callable:
    return lambda q, k, v, ranges, **options: real(q * q.shape[3] ** 0.5, k, v, ranges, **options)


FAULTS = (
    Fault(
        name="mask_one_ahead",
        layer="model",
        mechanism="The causal mask is off by one: a position sees the next token.",
        symptom="The loss falls far below the entropy of text; generation is garbage.",
        incident="masks that are written by hand; no report is cited",
        plant=(_ranges(_one_ahead),),
        seen_by=("causality",),
    ),
    Fault(
        name="mask_leaks_far_out",
        layer="model",
        mechanism="The mask is right at short positions and off by one from position 40 on, as at a border of blocks.",
        symptom="The loss is too low at long positions only.",
        incident="jax #27224 (a kernel that is right at multiples of its block only)",
        plant=(_ranges(_ahead_far_out),),
        seen_by=("causality",),
    ),
    Fault(
        name="cross_document_attention",
        layer="model",
        mechanism="The mask forgets where documents begin.",
        symptom="The loss is lower.",
        incident="transformers #46634 (the loss still decreases), axolotl #3796, nanoVLM #204",
        plant=(_ranges(_across_documents),),
        seen_by=("documents_isolated", "reference"),
    ),
    Fault(
        name="window_off_by_one",
        layer="model",
        mechanism="The sliding window holds one key more than in inference.",
        symptom="A small difference between training and inference.",
        incident="unsloth's report on gpt-oss: FlexAttention's example keeps N + 1",
        plant=(Patch(PACKED, lambda real: lambda s, p, *, window=0: real(s, p, window=window + 1)),),
        seen_by=("window", "reference"),
        config={"model.window": 12},
    ),
    Fault(
        name="rope_theta_lost",
        layer="model",
        mechanism="The base of the rotary frequencies falls back to its default.",
        symptom="Good in training; long contexts fail once the right base is used.",
        incident="airllm #368, gemma.cpp #986, vLLM #9503",
        plant=(Patch(ANGLES, lambda real: lambda p, width, *, theta: real(p, width, theta=10000.0)),),
        seen_by=("reference",),
        config={"model.rope_theta": 500000.0},
    ),
    Fault(
        name="rope_in_bfloat16",
        layer="model",
        mechanism="Positions are rounded to bfloat16: 256 and 257 are the same.",
        symptom="None at short lengths.",
        incident="transformers #29285; sglang-jax #1472, #1473 (error 0.83 at position 4095)",
        plant=(Patch(ANGLES, _coarse_positions),),
        seen_by=("rope_shift_invariance", "reference"),
        config={"model.context_length": 512, "train.batch_size": 4},
    ),
    Fault(
        name="rope_pairing_swapped",
        layer="model",
        mechanism="Pairs are neighbours where the config says halves.",
        symptom="Good in training; the weights mean something else to every other program.",
        incident="transformers permutes the weights of Llama for it",
        plant=(
            Patch(
                "jaxlm.model.transformer:rotate",
                lambda real: lambda x, angles, *, pairing: real(x, angles, pairing="interleaved"),
            ),
        ),
        seen_by=("reference",),
    ),
    Fault(
        name="rope_seam",
        layer="model",
        mechanism="Angles come from two tables, the second of which begins 16 positions too late.",
        symptom="Long documents are a little worse.",
        incident="caches of angles that are extended with another offset; no report is cited",
        plant=(Patch(ANGLES, _in_two_tables),),
        seen_by=("reference", "rope_shift_invariance"),
    ),
    Fault(
        name="fourth_document_open",
        layer="model",
        mechanism="From the fourth document of a row on the borders are lost, as in a table with room for three.",
        symptom="Hardly any where documents are long.",
        incident="lists of borders of a fixed length in packed attention; no report is cited",
        plant=(_ranges(_from_the_fourth_on),),
        seen_by=("reference",),
    ),
    Fault(
        name="heads_tiled",
        layer="model",
        mechanism="Of grouped key/value heads the wrong ones are read: tiled instead of repeated.",
        symptom="None in training; converted weights give garbage.",
        incident="onnx #7274, axlearn #842, jax-js #180",
        plant=(Patch(ATTENTION, _tiled_heads),),
        seen_by=("reference",),
    ),
    Fault(
        name="scores_unscaled",
        layer="model",
        mechanism="The scores are not divided by the root of the head's width.",
        symptom="Sharper attention, sooner unstable.",
        incident="scaled twice or never where a kernel scales by itself; no report is cited",
        plant=(Patch(ATTENTION, _unscaled),),
        seen_by=("reference",),
    ),
)
