"""Faults of numbers: overflow, underflow, accumulation, and guards that hide them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import Batch, permute
from jaxlm.faults.fault import BEGINS, Disturbed, Fault, Patch, Program
from jaxlm.faults.leaves import all_changed, changed, layer, rounded, times, with_params
from jaxlm.model import LossScale
from jaxlm.train.state import TrainState
from pallas_kernels import Attended

FEED_FORWARD = "jaxlm.model.transformer:_feed_forward"
APPLY = ("jaxlm.train.step:apply_gradients", "jaxlm.train.probes:apply_gradients")


def _hot_weights(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    return with_params(state, w_up=layer(1, times(1e21)), w_gate=layer(1, times(1e21))), batch


def _large_scores(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    return with_params(state, wq=layer(1, times(60.0)), wk=layer(1, times(60.0))), batch


@jax.custom_vjp
def _loud(x: jax.Array) -> jax.Array:
    return x


_loud.defvjp(lambda x: (x, None), lambda _, d: ((d * 1e38) * 1e38,))


def _loud_backward(real: Callable) -> Callable:
    return lambda *arguments: _loud(real(*arguments))


def _root_at_zero(real: Callable) -> Callable:
    """A root whose argument is 0 where the other branch of `where` is taken: its gradient there is 0 * inf."""

    def feed_forward(*arguments: Any) -> jax.Array:
        out = real(*arguments)
        kept = jnp.maximum(out, 0.0)
        return out + 1e-9 * jnp.where(kept > 0.0, jnp.sqrt(kept), 0.0)

    return feed_forward


def _naive_softmax(real: Callable) -> Callable:
    """Weights without the maximum subtracted first."""

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, *, softcap: float = 0.0) -> Attended:
        group = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * q.shape[3] ** -0.5
        seen = ranges.mask(k.shape[1])[:, None]
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, 0.0)), 0.0)
        total = jnp.sum(weights, axis=-1)
        out = jnp.einsum("BNTS,BSNH->BTNH", weights / total[..., None], v)
        lse, peak = jnp.log(total), jnp.max(jnp.where(seen, scores, -1e30), axis=-1)
        mean = jnp.sum(weights * scores, axis=-1) / total
        turned = [jax.lax.stop_gradient(jnp.swapaxes(x, 1, 2)) for x in (lse, peak, mean)]
        return Attended(out.astype(v.dtype), *turned)

    return attention


def _nan_row(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    row = int(np.asarray(batch.tokens)[0, 3])

    def spoilt(embed: np.ndarray) -> np.ndarray:
        embed[row, 0] = np.nan
        return embed

    return with_params(state, embed=spoilt), batch


def _rare_rows(real: Callable) -> Callable:
    """The text of one batch is ids in a fixed pattern, as a dump of a binary file would be, between the borders of documents.

    The shards hold it, in memory: what is fed is what there is, in its place."""

    def prepare(cfg: Any, *arguments: Any, **options: Any) -> Any:
        parts = real(cfg, *arguments, **options)
        stream, length = parts.data.train, cfg.model.context_length
        examples = (BEGINS - 1) * cfg.train.batch_size + np.arange(cfg.train.batch_size)
        rows = permute(examples, stream.rows(length), seed=cfg.data.order_seed, epoch=0)
        ids = np.concatenate([np.asarray(shard) for shard in stream.shards])
        t = np.arange(length)
        for number, row in enumerate(rows.tolist()):
            here = ids[row * length : (row + 1) * length]
            text = parts.tokenizer.byte_lengths[here] > 0
            here[text] = (100 + t[: len(here)] * 7 % 397 + number)[text]
        shards = tuple(np.split(ids, stream.offsets[1:]))
        train = dataclasses.replace(stream, shards=shards)
        return dataclasses.replace(parts, data=dataclasses.replace(parts.data, train=train))

    return prepare


def _never_scaled(real: Any) -> Any:
    class Unscaled(LossScale):
        @classmethod
        def create(cls, policy: Any) -> LossScale:
            return LossScale(scale=jnp.ones((), jnp.float32), good_steps=jnp.zeros((), jnp.int32))

    return Unscaled


def _scale_stuck(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    """The scale is raised in every step, whatever the gradients say."""
    return dataclasses.replace(state, loss_scale=changed(state.loss_scale, scale=times(4.0))), batch


class _RoundedSums:
    """`jnp` with an addition that rounds to bfloat16."""

    def __init__(self, real: Any):
        self._real = real

    def add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        total = x + y
        return jax.lax.reduce_precision(total, 8, 7) if jnp.issubdtype(total.dtype, jnp.floating) else total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _erased(real: Callable) -> Callable:
    return lambda state, gradients: real(state, gradients._replace(grads=jax.tree.map(jnp.nan_to_num, gradients.grads)))


def _times_zero(real: Callable) -> Callable:
    """A step is skipped by a factor of 0, which NaN survives."""

    def apply(state: TrainState, gradients: Any) -> Any:
        after, telemetry = real(state, gradients)
        keep = jnp.where(telemetry.finite, 1.0, 0.0)
        params = jax.tree.map(lambda p, g: p - 0.0 * keep * g, after.params, gradients.grads)
        return dataclasses.replace(after, params=params), telemetry

    return apply


def _skips_for_ever(real: Callable) -> Callable:
    """After a step that was skipped all later ones are, as when NaN has entered the window of a rule."""

    def apply(state: TrainState, gradients: Any) -> Any:
        poisoned = state.skipped > 0
        grads = jax.tree.map(lambda g: jnp.where(poisoned, jnp.nan, g), gradients.grads)
        return real(state, gradients._replace(grads=grads))

    return apply


def _coarse_counts(real: Callable) -> Callable:
    """The sums of the loss are kept in bfloat16: 257 labels are 256."""

    def head_loss(*arguments: Any, **options: Any) -> Any:
        objective, sums = real(*arguments, **options)
        return objective, jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), sums)

    return head_loss


def _bfloat16_weights(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    return dataclasses.replace(state, params=all_changed(state.params, rounded)), batch


FAULTS = (
    Fault(
        name="overflow_forward",
        layer="numerics",
        mechanism="The feed-forward of layer 1 overflows float32.",
        symptom="NaN, and nothing that says where.",
        incident="GLM-130B report (2022): values beyond the range of FP16 in deep layers",
        plant=(Disturbed(_hot_weights),),
        seen_by=("nonfinite",),
        at=BEGINS,
        layer_index=1,
        operation="mul",
    ),
    Fault(
        name="overflow_backward",
        layer="numerics",
        mechanism="The forward pass is finite; a custom gradient overflows.",
        symptom="A finite loss, and a step whose gradient is not.",
        incident="custom gradients whose constants were never in range; no report is cited",
        plant=(Program((Patch(FEED_FORWARD, _loud_backward),)),),
        seen_by=("nonfinite",),
        at=BEGINS,
        layer_index=2,
        operation="mul",
    ),
    Fault(
        name="root_at_zero",
        layer="numerics",
        mechanism="The gradient of a root at 0 is infinite, and `where` multiplies it by 0.",
        symptom="NaN in the gradient only.",
        incident="jax FAQ: gradients contain NaN where using where",
        plant=(Program((Patch(FEED_FORWARD, _root_at_zero),)),),
        seen_by=("nonfinite",),
        at=BEGINS,
        layer_index=2,
        operation="div",
    ),
    Fault(
        name="softmax_without_max",
        layer="numerics",
        mechanism="The largest score is not subtracted before the exponential; scores of 100 overflow.",
        symptom="None until the scores grow; then NaN.",
        incident="Milakov & Gimelshein 2018 describe the safe one; kernels written by hand",
        plant=(Disturbed(_large_scores), Program((Patch("jaxlm.model.attention:attention", _naive_softmax),))),
        seen_by=("nonfinite", "parameter_jump"),
        at=BEGINS,
        layer_index=1,
    ),
    Fault(
        name="nan_in_one_row",
        layer="numerics",
        mechanism="One number of the embedding is NaN; only batches that hold the token show it.",
        symptom="NaN at some later step; where it came from is forgotten then.",
        incident="unsloth #658 (untrained rows), Fast-LLM #77",
        plant=(Disturbed(_nan_row),),
        seen_by=("nonfinite",),
        at=BEGINS,
    ),
    Fault(
        name="rare_batch",
        layer="numerics",
        mechanism="One batch is no text: ids in a pattern that no text has.",
        symptom="A spike in the loss and in the gradient.",
        incident="PaLM 2022, section 5.1: spikes from certain batches; OPT-175B's logbook",
        plant=(Patch("jaxlm.train.fit:prepare", _rare_rows),),
        seen_by=("loss_spike", "loss_spread", "grad_norm", "layer_gradient", "backward_norm", "loss_ceiling", "z_loss"),
        at=BEGINS,
        within=1,
    ),
    Fault(
        name="float16_unscaled",
        layer="numerics",
        mechanism="float16 without loss scaling: small gradients become 0.",
        symptom="Slow learning.",
        incident="Micikevicius et al. 2018; flax DynamicScale may fall to 1e-38 unnoticed",
        plant=(Patch("jaxlm.train.state:LossScale", _never_scaled),),
        seen_by=("loss_scale", "scaler_thrashing"),
        config={"train.precision": "float16"},
        at=1,
        within=1,
    ),
    Fault(
        name="scale_runs_away",
        layer="numerics",
        mechanism="The loss scale is raised whatever the gradients say.",
        symptom="Steps are skipped, more and more.",
        incident="DeepSpeed #697, mistral #36",
        plant=(Disturbed(_scale_stuck, once=False),),
        seen_by=("loss_scale", "scaler_thrashing"),
        config={"train.precision": "float16"},
        at=BEGINS,
        within=8,
    ),
    Fault(
        name="sums_in_bfloat16",
        layer="numerics",
        mechanism="Gradients are added over micro-batches in bfloat16.",
        symptom="Small gradients are lost beside large ones; the loss is a little worse.",
        incident="trl #2175 (FSDP-1 accumulates in 16 bits)",
        plant=(Patch("jaxlm.train.step:jnp", _RoundedSums),),
        seen_by=("accumulation",),
    ),
    Fault(
        name="counts_in_bfloat16",
        layer="numerics",
        mechanism="The sums of the loss and the count of labels are kept in bfloat16.",
        symptom="The loss is off by up to a half per cent, always the same way.",
        incident="scan-accumulated ones in bfloat16 stop at 256",
        plant=(Patch("jaxlm.train.step:head_loss", _coarse_counts),),
        seen_by=("train_step", "masked_labels", "accumulation"),
    ),
    Fault(
        name="weights_in_bfloat16",
        layer="numerics",
        mechanism="The weights are kept in bfloat16: an update of less than a 256th of a weight is lost.",
        symptom="Learning stops early.",
        incident="ml-by-hand #85 (0 of 768 weights moved), sd_dreambooth #1415, Automodel #2248",
        plant=(Disturbed(_bfloat16_weights, once=False),),
        seen_by=("frozen_parameter", "parameter_jump"),
        at=BEGINS,
        within=16,
    ),
    Fault(
        name="nan_erased",
        layer="numerics",
        mechanism="NaN gradients are set to 0 before anyone looks.",
        symptom="None.",
        incident="optax.zero_nans, elementwise clipping of infinities",
        plant=tuple(Patch(target, _erased) for target in APPLY),
        seen_by=("planted_nan",),
    ),
    Fault(
        name="nan_times_zero",
        layer="numerics",
        mechanism="A step is skipped by multiplying its update with 0; NaN times 0 is NaN.",
        symptom="NaN in the weights, from a guard against NaN.",
        incident="Levanter SkipStepConfig (optim/skipstep.py)",
        plant=tuple(Patch(target, _times_zero) for target in APPLY),
        seen_by=("planted_nan",),
    ),
    Fault(
        name="guard_poisoned",
        layer="numerics",
        mechanism="One NaN gradient enters the window of a guard, which skips every step from then on.",
        symptom="A finite loss that does not fall.",
        incident="MaxText skip_step_on_spikes: one NaN, 129 steps skipped",
        plant=tuple(Patch(target, _skips_for_ever) for target in APPLY),
        seen_by=("planted_nan",),
    ),
)
