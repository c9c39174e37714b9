"""Faults of the model: masks, positions, norms, residuals, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.data import Batch
from jaxlm.faults.fault import BEGINS, Disturbed, Fault, Patch, Program
from jaxlm.faults.leaves import layer, times, with_params
from jaxlm.train.state import TrainState

PACKED = "jaxlm.model.attention:packed"
BLOCK = "jaxlm.model.transformer:block"
NORM = "jaxlm.model.transformer:rms_norm"
ANGLES = "jaxlm.model.transformer:rope_angles"
ATTENTION = "jaxlm.model.attention:attention"
HIDDEN = "jaxlm.train.step:hidden"


def _ranges(change: Callable) -> Patch:
    """The ranges of keys of packed rows are others. change: takes them, segments and positions."""
    return Patch(PACKED, lambda real: lambda s, p, *, window=0: change(real(s, p, window=window), s, p))


def _one_ahead(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(end_BT=ranges.end_BT + 1)


def _ahead_far_out(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(end_BT=ranges.end_BT + (positions >= 40))


def _across_documents(ranges: Any, segments: jax.Array, positions: jax.Array) -> Any:
    return ranges._replace(start_BT=jnp.zeros_like(ranges.start_BT))


def _pooled(real: Callable) -> Callable:
    """A hundredth of the mean over all positions is added to each."""

    def block(x_BTD: jax.Array, *arguments: Any, **options: Any) -> Any:
        return real(x_BTD + 0.01 * jnp.mean(x_BTD, axis=1, keepdims=True), *arguments, **options)

    return block


def _smoothed(real: Callable) -> Callable:
    """What tells positions apart is divided by ten."""

    def hidden(*arguments: Any, **options: Any) -> Any:
        x_BTD, stats, cache = real(*arguments, **options)
        mean_D = jnp.mean(x_BTD, axis=(0, 1))
        return mean_D + 0.1 * (x_BTD - mean_D), stats, cache

    return hidden


def _without_residual(real: Callable) -> Callable:
    def block(x_BTD: jax.Array, *arguments: Any, **options: Any) -> Any:
        out_BTD, stats, cache = real(x_BTD, *arguments, **options)
        return out_BTD - x_BTD, stats, cache

    return block


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


def _no_norm(real: Callable) -> Callable:
    """The last norm is left out: `hidden` is told that the model has none, its blocks that they have."""
    return lambda params, tokens, cfg, *a, **k: real(params, tokens, dataclasses.replace(cfg, norm="none"), *a, **k)


def _with_norm(real: Callable) -> Callable:
    return lambda x, layer, cfg, *a, **k: real(x, layer, dataclasses.replace(cfg, norm="pre"), *a, **k)


def _specs_with_norm(real: Callable) -> Callable:
    return lambda cfg: real(dataclasses.replace(cfg, norm="pre"))


def _centred(real: Callable) -> Callable:
    def norm(x: jax.Array, gain: jax.Array | None, *, eps: float) -> jax.Array:
        return real(x - jnp.mean(x, axis=-1, keepdims=True), gain, eps=eps)

    return norm


def _silent_layer(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    return with_params(state, wo=layer(1, times(0.0)), w_down=layer(1, times(0.0))), batch


def _untied(real: Callable) -> Callable:
    """The head is a copy of the embedding that was made once: here, its rows in another order."""
    return lambda params: jnp.roll(real(params), 7, axis=0)


def _detached(real: Callable) -> Callable:
    return lambda params: jax.lax.stop_gradient(real(params))


def _frozen_branch(real: Callable) -> Callable:
    def attention(*arguments: Any) -> Any:
        out, cache, scores = real(*arguments)
        return jax.lax.stop_gradient(out), cache, scores

    return attention


def _sharper(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    """Queries of layer 2 grow by a fifth in each step."""
    return with_params(state, wq=layer(2, times(1.2))), batch


def _same_mask(real: Callable) -> Callable:
    return lambda params, batch, cfg, *, loss_scale, key: real(params, batch, cfg, loss_scale=loss_scale, key=jax.random.key(0))


def _dropping(real: Callable) -> Callable:
    def hidden(*arguments: Any, dropout_key: Any = None, **options: Any) -> Any:
        return real(*arguments, dropout_key=jax.random.key(3), **options)

    return hidden


def _unscaled_residuals(real: Callable) -> Callable:
    def init_params(cfg: Any, key: Any) -> Any:
        params, factor = real(cfg, key), (2 * cfg.n_layers) ** 0.5
        blocks = dataclasses.replace(params.blocks, wo=params.blocks.wo * factor, w_down=params.blocks.w_down * factor)
        return dataclasses.replace(params, blocks=blocks)

    return init_params


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
        name="pooled_future",
        layer="model",
        mechanism="A statistic over all positions, the future's too, is added to each.",
        symptom="The loss is a little lower; generation is worse than the loss says.",
        incident="statistics over time in speech and language models; no report is cited",
        plant=(Patch(BLOCK, _pooled),),
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
        name="norm_epsilon",
        layer="model",
        mechanism="The epsilon of the norms is 1e-5, the config says 1e-6.",
        symptom="None, until the weights are used elsewhere.",
        incident="candle #271, lit-llama #339, llama #771",
        plant=(Patch(NORM, lambda real: lambda x, gain, *, eps: real(x, gain, eps=1e-5)),),
        seen_by=("reference",),
    ),
    Fault(
        name="norm_centred",
        layer="model",
        mechanism="A layer norm stands where an RMS norm should.",
        symptom="None in training.",
        incident="norms mixed up in ports between frameworks; no report is cited",
        plant=(Patch(NORM, _centred),),
        seen_by=("reference",),
    ),
    Fault(
        name="residual_lost",
        layer="model",
        mechanism="A block hands on what it adds, without its input.",
        symptom="Slow learning that looks like a bad learning rate.",
        incident="a line lost in a refactoring; no report is cited",
        plant=(Patch(BLOCK, _without_residual),),
        seen_by=("reference", "residual_sum"),
    ),
    Fault(
        name="final_norm_lost",
        layer="model",
        mechanism="The last activations are not normed before the head.",
        symptom="A slightly worse loss.",
        incident="ports of GPT-2, whose ln_f is easy to miss; no report is cited",
        plant=(
            Patch(HIDDEN, _no_norm),
            Patch(BLOCK, _with_norm),
            Patch("jaxlm.model.transformer:param_specs", _specs_with_norm),
        ),
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
    Fault(
        name="head_untied_on_load",
        layer="model",
        mechanism="After a resume the head is another matrix than the embedding.",
        symptom="A loss spike in the first step.",
        incident="Automodel #2511, #2941, transformers #42612, vLLM #51665",
        plant=(Patch("jaxlm.model.head:output_head", _untied), Patch("jaxlm.model.transformer:output_head", _untied)),
        seen_by=("reference", "labels_shifted_by_one"),
        scene="resume",
    ),
    Fault(
        name="head_detached",
        layer="model",
        mechanism="The tied head gives no gradient to the embedding.",
        symptom="Slower learning.",
        incident="a stop_gradient that is left over from an experiment; no report is cited",
        plant=(Patch("jaxlm.model.head:output_head", _detached),),
        seen_by=("gradient_of_loss",),
    ),
    Fault(
        name="silent_layer",
        layer="model",
        mechanism="From some step on layer 1 adds nothing: what it gives is multiplied by zeros.",
        symptom="Never noticed: the others take over.",
        incident="shards that load as zeros; no report is cited",
        plant=(Disturbed(_silent_layer, once=False),),
        seen_by=("dead_layer", "parameter_jump", "collapsed_layer"),
        at=BEGINS,
        within=2,
        layer_index=1,
    ),
    Fault(
        name="frozen_branch",
        layer="model",
        mechanism="No gradient goes through attention, by a stop_gradient.",
        symptom="Slower learning.",
        incident="modules left frozen after fine-tuning; no report is cited",
        plant=(Program((Patch("jaxlm.model.transformer:_attention", _frozen_branch),)),),
        seen_by=("dead_layer", "layer_gradient", "update_ratio"),
        at=BEGINS,
        within=2,
    ),
    Fault(
        name="attention_logits_grow",
        layer="model",
        mechanism="The queries of layer 2 grow from step to step, as with a rate at the edge of stability.",
        symptom="A spike, many steps later.",
        incident="Dehghani et al. 2023 (ViT-22B); marin #1368",
        plant=(Disturbed(_sharper, once=False),),
        seen_by=("parameter_jump", "attention_logits", "attention_entropy"),
        at=BEGINS,
        within=8,
        layer_index=2,
    ),
    Fault(
        name="positions_smoothed",
        layer="model",
        mechanism="From some step on the last activations of all positions are nearly one vector.",
        symptom="The loss goes back to that of guessing tokens by their frequency.",
        incident="Dong et al. 2021 (attention loses rank), Shi et al. 2022 (over-smoothing in BERT)",
        plant=(Program((Patch(HIDDEN, _smoothed),)),),
        seen_by=("representation_collapse",),
        at=BEGINS,
        within=8,
    ),
    Fault(
        name="dropout_mask_repeats",
        layer="model",
        mechanism="The key of dropout is not advanced: every step drops the same units.",
        symptom="A model with fewer units.",
        incident="flax #5529 (identical masks from a stream that was rewound)",
        plant=(Patch("jaxlm.train.step:compute_gradients", _same_mask),),
        seen_by=("dropout_fresh",),
        config={"model.dropout": 0.1},
    ),
    Fault(
        name="dropout_in_evaluation",
        layer="model",
        mechanism="Dropout stays on when text is scored.",
        symptom="The validation loss is too high, and noisy.",
        incident="nanoGPT #240",
        plant=(Patch(HIDDEN, _dropping),),
        seen_by=("evaluation_deterministic", "labels_shifted_by_one", "documents_isolated", "reference"),
        config={"model.dropout": 0.1},
    ),
    Fault(
        name="initial_weights_too_large",
        layer="model",
        mechanism="The embedding is drawn with a standard deviation of 1.",
        symptom="A first loss far above ln V; training recovers, and ends worse.",
        incident="PyTorch's nn.Embedding default against 0.02 of GPT-2",
        plant=(
            Patch(
                "jaxlm.train.state:init_params",
                lambda real: lambda cfg, key: (lambda p: dataclasses.replace(p, embed=p.embed * 50.0))(real(cfg, key)),
            ),
        ),
        seen_by=("initial_loss", "first_loss"),
    ),
    Fault(
        name="residual_initialisation_lost",
        layer="model",
        mechanism="What is added to the residual stream is drawn without 1 / sqrt(2 L).",
        symptom="None at this depth; deep models begin unstable.",
        incident="the scale of GPT-2's report (2019), which ports leave out; no report is cited",
        plant=(Patch("jaxlm.train.state:init_params", _unscaled_residuals),),
        seen_by=("initial_weights",),
    ),
)
