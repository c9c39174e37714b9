"""Faults of the update: decay, schedule, moments, clipping, accumulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.data import Batch
from jaxlm.faults.fault import BEGINS, Disturbed, Fault, Patch, Program
from jaxlm.faults.leaves import all_changed, changed, times
from jaxlm.train.state import TrainState

BUILD = "jaxlm.optim.build"
RESTORED = "jaxlm.train.session:Session._restored"
GRADIENTS = ("jaxlm.train.step:compute_gradients", "jaxlm.train.probes:compute_gradients")


def _decay_all(real: Callable) -> Callable:
    return lambda params, no_decay: jax.tree.map(lambda _: True, params)


def _decay_none(real: Callable) -> Callable:
    return lambda params, no_decay: jax.tree.map(lambda _: False, params)


def _restored(change: Callable[[Any], Any]) -> tuple[Patch, ...]:
    """What a resumed run begins with is another state than the saved one."""

    def make(real: Callable) -> Callable:
        def restored(self: Any, allow_older: bool) -> Any:
            state, mark = real(self, allow_older)
            return dataclasses.replace(state, opt_state=(*state.opt_state[:-1], change(state.opt_state[-1]))), mark

        return restored

    return (Patch(RESTORED, make),)


def _count_anew(adam: Any) -> Any:
    return changed(adam, count=times(0.0))


def _moments_anew(adam: Any) -> Any:
    return dataclasses.replace(adam, mu=all_changed(adam.mu, times(0.0)), nu=all_changed(adam.nu, times(0.0)))


def _without_moments(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
    return dataclasses.replace(state, opt_state=(*state.opt_state[:-1], _moments_anew(state.opt_state[-1]))), batch


def _state_anew(adam: Any) -> Any:
    return _count_anew(_moments_anew(adam))


def _updates(change: Callable[[Any, jax.Array], Any]) -> tuple[Patch, ...]:
    """Adam's updates are others. change: takes the updates and the count of updates before."""

    def make(real: Callable) -> Callable:
        def adamw(*arguments: Any, **options: Any) -> Any:
            inner = real(*arguments, **options)

            def update(grads: Any, state: Any, params: Any = None, **more: Any) -> Any:
                updates, after = inner.update(grads, state, params, **more)
                return change(updates, state.count), after

            return optax.GradientTransformationExtraArgs(inner.init, update)

        return adamw

    return (Patch(f"{BUILD}:adamw", make),)


def _uncorrected(updates: Any, count: jax.Array) -> Any:
    n = count.astype(jnp.float32) + 1.0
    return jax.tree.map(lambda u: u * (1.0 - 0.9**n) / jnp.sqrt(1.0 - 0.95**n), updates)


def _options(**changed: Any) -> tuple[Patch, ...]:
    return (Patch(f"{BUILD}:adamw", lambda real: lambda *a, **options: real(*a, **{**options, **changed})),)


def _times_ten(real: Callable) -> Callable:
    def schedule_of(*arguments: Any) -> Callable:
        inner = real(*arguments)
        return lambda count: 10.0 * inner(count)

    return schedule_of


def _higher_floor(real: Callable) -> Callable:
    """The rate that updates are made with stops falling at a quarter of the peak; the one that is reported does not."""

    def schedule_of(cfg: Any, steps: int) -> Callable:
        inner = real(cfg, steps)
        return lambda count: jnp.where(count < cfg.warmup_steps, inner(count), jnp.maximum(inner(count), 0.25 * cfg.lr))

    return schedule_of


def _old_rows_alone(updates: Any, count: jax.Array) -> Any:
    moving_V = jnp.arange(updates.embed.shape[0]) < 256
    return dataclasses.replace(updates, embed=updates.embed * moving_V[:, None])


def _now_and_then(real: Callable) -> Callable:
    """Every fourth update is made without a gradient of the feed-forward."""

    def apply(state: TrainState, gradients: Any) -> Any:
        arrived = (state.step % 4 != 3).astype(jnp.float32)
        blocks = gradients.grads.blocks
        late = {name: getattr(blocks, name) * arrived for name in ("w_gate", "w_up", "w_down")}
        grads = dataclasses.replace(gradients.grads, blocks=dataclasses.replace(blocks, **late))
        return real(state, gradients._replace(grads=grads))

    return apply


class _ClippedSums:
    """`jnp` with an addition that clips what is added, by its own norm: clipping each micro-batch."""

    def __init__(self, real: Any):
        self._real = real

    def add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y * jnp.minimum(1.0, 1e-3 / (jnp.sqrt(jnp.sum(jnp.square(y))) + 1e-12)) if y.ndim else x + y

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _mean_of_means(real: Callable) -> Callable:
    def head_loss(*arguments: Any, **options: Any) -> Any:
        objective, sums = real(*arguments, **options)
        mean = dataclasses.replace(
            sums,
            nll=sums.nll / sums.count,
            z=sums.z / sums.count,
            squares=sums.squares / sums.count,
            count=jnp.ones_like(sums.count),
        )
        return objective / sums.count, mean

    return head_loss


def _last_micro_batch(real: Callable) -> Callable:
    """Only half of the rows enters the gradient, the loss is that of all."""

    def gradients(params: Any, batch: Any, cfg: Any, **options: Any) -> Any:
        rows = jnp.arange(batch.loss_mask.shape[0])[:, None] % 2 == 0
        half = real(params, batch._replace(loss_mask=batch.loss_mask & rows), cfg, **options)
        return real(params, batch, cfg, **options)._replace(grads=half.grads)

    return gradients


def _sum_for_mean(real: Callable) -> Callable:
    def gradients(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        return found._replace(grads=jax.tree.map(lambda g: g * 8.0, found.grads))

    return gradients


def _unclipped(real: Callable) -> Callable:
    return lambda max_norm: optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda grads, state, params=None, **_: (grads, state)
    )


FAULTS = (
    Fault(
        name="decay_on_everything",
        layer="optimizer",
        mechanism="Weight decay shrinks norms, biases and embeddings as well.",
        symptom="A slow loss of quality.",
        incident="Fast-LLM #542, Megatron-DeepSpeed #262; optax.adamw's mask is None by default",
        plant=(Patch(f"{BUILD}:decay_mask", _decay_all),),
        seen_by=("decay_touches_declared",),
    ),
    Fault(
        name="decay_on_nothing",
        layer="optimizer",
        mechanism="The mask of the decay matches every leaf.",
        symptom="Weights grow; quality is lost late.",
        incident="an expression that matches the prefix of every name; no report is cited",
        plant=(Patch(f"{BUILD}:decay_mask", _decay_none),),
        seen_by=("decay_touches_declared",),
    ),
    Fault(
        name="schedule_restarted",
        layer="optimizer",
        mechanism="After a resume the count of updates is 0, so the warm-up comes again.",
        symptom="The loss stands still, then spikes.",
        incident="pytorch #60265, nanotron #256",
        plant=_restored(_count_anew),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="moments_not_restored",
        layer="optimizer",
        mechanism="After a resume Adam's moments are 0.",
        symptom="A spike for some hundred steps that heals.",
        incident="LibreYOLO #277",
        plant=_restored(_moments_anew),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="optimizer_not_restored",
        layer="optimizer",
        mechanism="After a resume the whole state of the optimizer is new.",
        symptom="A spike, and the warm-up again.",
        incident="checkpoints that hold the model alone; no report is cited",
        plant=_restored(_state_anew),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="bias_correction_missing",
        layer="optimizer",
        mechanism="Adam's moments are not corrected for their start at 0.",
        symptom="A slow start.",
        incident="BertAdam (Mosbach et al. 2021 trace instabilities to it)",
        plant=_updates(_uncorrected),
        seen_by=("update_rule",),
    ),
    Fault(
        name="epsilon_too_large",
        layer="optimizer",
        mechanism="Adam's epsilon is 1e-2: small gradients are hardly followed.",
        symptom="A worse loss, as from a lower rate.",
        incident="epsilon inside or outside of the root, by framework; no report is cited",
        plant=_options(eps=1e-2),
        seen_by=("update_rule",),
    ),
    Fault(
        name="second_moment_forgets",
        layer="optimizer",
        mechanism="The second moment decays with b1: b1 and b2 are swapped in the call.",
        symptom="Noisy updates, sooner unstable.",
        incident="keyword arguments exchanged; no report is cited",
        plant=_options(b1=0.95, b2=0.9),
        seen_by=("update_rule",),
    ),
    Fault(
        name="rate_times_ten",
        layer="optimizer",
        mechanism="The optimizer uses ten times the rate that is reported.",
        symptom="An unstable run.",
        incident="a rate scaled by the world size twice; no report is cited",
        plant=(Patch(f"{BUILD}:schedule_of", _times_ten),),
        seen_by=("update_rule",),
    ),
    Fault(
        name="rate_at_its_peak_at_once",
        layer="optimizer",
        mechanism="The warm-up is left out, in the optimizer and in what it reports.",
        symptom="A spike in the first steps; quality lost.",
        incident="a renamed option whose default is no warm-up; no report is cited",
        plant=(
            Patch(f"{BUILD}:schedule_of", lambda real: lambda cfg, steps: lambda count: real(cfg, steps)(count + 20)),
            Patch("jaxlm.train.step:schedule_of", lambda real: lambda cfg, steps: lambda count: real(cfg, steps)(count + 20)),
        ),
        seen_by=("update_rule", "learning_rate"),
    ),
    Fault(
        name="clipped_by_micro_batch",
        layer="optimizer",
        mechanism="Gradients are clipped before they are added over micro-batches.",
        symptom="Another effective rate.",
        incident="praxis #6, transformers #614",
        plant=(Patch("jaxlm.train.step:jnp", _ClippedSums),),
        seen_by=("accumulation", "gradient_of_loss"),
    ),
    Fault(
        name="clipping_lost",
        layer="optimizer",
        mechanism="Gradients are not clipped, though the config says so.",
        symptom="Spikes that the config should have prevented.",
        incident="chains in which the clip comes after Adam; no report is cited",
        plant=(Patch(f"{BUILD}:clip_by_global_norm", _unclipped),),
        seen_by=("update_rule",),
        config={"optim.clip_norm": 0.5},
    ),
    Fault(
        name="mean_of_means",
        layer="optimizer",
        mechanism="Micro-batches are averaged each by itself, then with each other, whatever their labels.",
        symptom="A loss that is slightly off.",
        incident="transformers #34191, #35203, #37197; unsloth 2024-10; OpenNMT #526; optax.MultiSteps",
        plant=(Patch("jaxlm.train.step:head_loss", _mean_of_means),),
        seen_by=("accumulation", "masked_labels"),
    ),
    Fault(
        name="half_of_the_batch",
        layer="optimizer",
        mechanism="The gradient is that of half of the rows; the loss is reported for all.",
        symptom="Noisier learning.",
        incident="nanochat logs the loss of the last micro-batch (base_train.py)",
        plant=tuple(Patch(target, _last_micro_batch) for target in GRADIENTS),
        seen_by=("gradient_of_loss", "accumulation"),
    ),
    Fault(
        name="sum_for_mean",
        layer="optimizer",
        mechanism="Gradients are summed over replicas where they should be averaged; Adam hides it, clipping does not.",
        symptom="Everything is clipped; epsilon and decay weigh less.",
        incident="gradient scaling after a change of the world size; no report is cited",
        plant=tuple(Patch(target, _sum_for_mean) for target in GRADIENTS),
        seen_by=("gradient_of_loss",),
    ),
    Fault(
        name="floor_too_high",
        layer="optimizer",
        mechanism="The rate of the updates stops at a quarter of the peak, where the config, and the log, say a tenth.",
        symptom="None: the last part of the schedule is a little worse.",
        incident="a default of min_lr beside a ratio in another unit; no report is cited",
        plant=(Patch(f"{BUILD}:schedule_of", _higher_floor),),
        seen_by=("update_rule",),
    ),
    Fault(
        name="new_rows_frozen",
        layer="optimizer",
        mechanism="Rows of the embedding beyond the first 256 are never updated.",
        symptom="Rare tokens stay what they were drawn as.",
        incident="masks for added tokens, the wrong way round; no report is cited",
        plant=_updates(_old_rows_alone),
        seen_by=("update_rule",),
    ),
    Fault(
        name="gradients_come_late",
        layer="optimizer",
        mechanism="In every fourth step the feed-forward has no gradient: its bucket is reduced after the update.",
        symptom="None.",
        incident="races between backward hooks and the optimizer; no report is cited",
        plant=(Program((Patch("jaxlm.faults.planting:apply_gradients", _now_and_then),)),),
        seen_by=("dead_layer",),
        at=BEGINS,
        within=8,
    ),
    Fault(
        name="moments_lost",
        layer="optimizer",
        mechanism="The moments are zero in the middle of a run; the count of updates is kept.",
        symptom="Some ten updates are too large; the loss hardly shows it.",
        incident="optimizer state that was offloaded and not brought back; no report is cited",
        plant=(Disturbed(_without_moments),),
        seen_by=("moments_lost", "update_bound"),
        at=BEGINS,
        within=1,
    ),
)
