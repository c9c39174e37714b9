"""Faults of the model outside of attention: norms, residuals, heads, dropout, weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.data import Batch
from jaxlm.faults.fault import BEGINS, Disturbed, Fault, Patch, Program
from jaxlm.faults.leaves import layer, times, with_params
from jaxlm.train.state import TrainState

BLOCK = "jaxlm.model.transformer:block"
NORM = "jaxlm.model.transformer:rms_norm"
HIDDEN = "jaxlm.train.step:hidden"


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


def _layers_alike(real: Callable) -> Callable:
    def init(cfg: Any, key: jax.Array) -> Any:
        params = real(cfg, key)
        return dataclasses.replace(
            params, blocks=jax.tree.map(lambda leaf: leaf[jnp.zeros(len(leaf), jnp.int32)], params.blocks)
        )

    return init


def _unsplit(real: Any) -> Any:
    """`jax`, which splits a key into equal ones."""

    def split(key: jax.Array, num: int = 2) -> jax.Array:
        return real.random.split(key, num)[jnp.zeros(num, jnp.int32)]

    return SimpleNamespace(**{**vars(real), "random": SimpleNamespace(**{**vars(real.random), "split": split})})


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
        name="pooled_future",
        layer="model",
        mechanism="A statistic over all positions, the future's too, is added to each.",
        symptom="The loss is a little lower; generation is worse than the loss says.",
        incident="statistics over time in speech and language models; no report is cited",
        plant=(Patch(BLOCK, _pooled),),
        seen_by=("causality",),
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
        name="dropout_mask_shared",
        layer="model",
        mechanism="All layers drop the same units: the key is not split.",
        symptom="A model with fewer units, where the residual stream has none.",
        incident="a key that is closed over instead of passed on; no report is cited",
        plant=(Patch("jaxlm.model.transformer:jax", _unsplit),),
        seen_by=("dropout_rate",),
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
        name="layers_drawn_alike",
        layer="model",
        mechanism="The key is not split over the layers: all of them start from the same weights.",
        symptom="None at this depth; layers take longer to become different.",
        incident="a key that is used twice, as JAX's documentation warns of; no report is cited",
        plant=(Patch("jaxlm.train.state:init_params", _layers_alike),),
        seen_by=("apart",),
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
