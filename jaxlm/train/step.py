"""The training step: a pure function of state and batch.

Gradients are those of sums over micro-batches, divided once by the count of all supervised labels: k micro-batches of
ragged masks give what one large batch gives. The update is applied only where loss and gradients are finite; otherwise
parameters and optimizer state stay bit by bit what they were, and the next step goes on.

Axes: A micro-batch, B batch, T position, L layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config.schema import RunConfig
from jaxlm.data import Batch, content_sum
from jaxlm.model import (
    BackwardStats,
    BlockStats,
    LossSums,
    Mask,
    Params,
    head_loss,
    head_nll,
    hidden,
    new_sinks,
    project,
    similarity,
)
from jaxlm.optim import schedule_of
from jaxlm.train.state import TrainState, optimizer, policy, rules
from jaxlm.watch import Telemetry, leaf_norms, still_rows, total_norm


class Gradients(NamedTuple):
    """grads: of the objective, per supervised label, float32, like the parameters. sums: the losses. stats: of the layers'
    activations, backward: of the gradients by their inputs, [L]. similarity: of the last activations at supervised positions.
    content: `content_sum` of the rows that they are of."""

    grads: Params
    sums: LossSums
    stats: BlockStats
    backward: BackwardStats
    similarity: jax.Array
    content: jax.Array


def _options(cfg: RunConfig) -> dict[str, Any]:
    return {"policy": policy(cfg), "rules": rules(cfg)}


def _activations(
    params: Params,
    batch: Batch,
    cfg: RunConfig,
    dropout_key: jax.Array | None = None,
    sinks_L2: jax.Array | None = None,
) -> tuple[jax.Array, BlockStats]:
    """The last activations of a packed batch, [B, T, D], and the statistics of the layers."""
    mask = Mask.packed(batch.segments, batch.positions, window=cfg.model.window)
    options = {**_options(cfg), "dropout_key": dropout_key, "remat": cfg.train.remat, "sinks_L2": sinks_L2}
    x_BTD, stats, _ = hidden(params, batch.tokens, cfg.model, mask, **options)
    return x_BTD, stats


def batch_logits(params: Params, batch: Batch, cfg: RunConfig) -> tuple[jax.Array, BlockStats]:
    """Logits over the padded vocabulary, [B, T, V], of a packed batch, and the statistics of the layers, without dropout.

    For the probes, which look at logits; training and scoring never hold those of a whole batch.
    """
    x_BTD, stats = _activations(params, batch, cfg)
    return project(params, x_BTD, cfg.model, **_options(cfg)), stats


def compute_gradients(params: Params, batch: Batch, cfg: RunConfig, *, loss_scale: jax.Array, key: jax.Array) -> Gradients:
    """Loss sums and gradients of a whole batch, over `grad_accum` micro-batches.

    The objective is (nll + z_loss * z) / count, in nats. Inside, the sums are divided by the number of positions, a
    constant, and multiplied by `loss_scale`, so that float16 gradients neither overflow nor vanish; the division by the
    count comes last. key: of this step's dropout; micro-batch a draws from fold_in(key, a).
    """
    positions = batch.tokens.size
    accum = cfg.train.grad_accum
    loss_options = {**_options(cfg), "chunk": cfg.train.loss_chunk, "z_loss": cfg.train.z_loss, "scale": loss_scale / positions}

    def objective(
        params: Params, sinks_L2: jax.Array, micro: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[LossSums, BlockStats, jax.Array]]:
        x_BTD, stats = _activations(params, micro, cfg, key if cfg.model.dropout else None, sinks_L2)
        objective, sums = head_loss(params, x_BTD, micro.labels, micro.loss_mask, cfg.model, **loss_options)
        return objective, (sums, stats, similarity(x_BTD, micro.loss_mask))

    gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
    sinks_L2 = new_sinks(cfg.model.n_layers)
    if accum == 1:
        content = content_sum(batch)
        (grads, sinks_L2), (sums, stats, alike) = gradient(params, sinks_L2, batch, jax.random.fold_in(key, 0))
    else:
        # Micro-batch a is rows a, a + A, ...: the rows of a device stay on it.
        # Said, not derived: of one row in a micro-batch jax would lay the batch's mesh axes on A.
        layout = None if jax.sharding.get_abstract_mesh().empty else rules(cfg).activation("BAT")

        def cut(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(jnp.reshape(x, (x.shape[0] // accum, accum, *x.shape[1:]), out_sharding=layout), 0, 1)

        micro_ABT = jax.tree.map(cut, batch)

        def add(total: tuple, scanned: tuple) -> tuple[tuple, tuple[BlockStats, jax.Array]]:
            micro, index = scanned
            grads, (sums, stats, alike) = gradient(params, sinks_L2, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, (grads, sums, content_sum(micro))), (stats, alike)

        zero = LossSums(*(jnp.zeros((), jnp.float32) for _ in range(4)))
        start = (jax.tree.map(jnp.zeros_like, (params, sinks_L2)), zero, jnp.zeros((), jnp.uint32))
        ((grads, sinks_L2), sums, content), (stats_AL, alike_A) = jax.lax.scan(add, start, (micro_ABT, jnp.arange(accum)))
        stats, alike = stats_AL.over_micro_batches(), jnp.mean(alike_A)
    # 0 * inf is NaN: a batch without a supervised label is a skipped step, never a loss of 0. Of products, unlike of quotients,
    # the compiler makes no array that is only read by others.
    inverse = positions / (loss_scale * sums.count)
    grads = jax.tree.map(lambda g: g * inverse, grads)
    backward = BackwardStats.from_sinks(sinks_L2, positions * cfg.model.d_model, inverse)
    return Gradients(grads, sums, stats, backward, alike, content)


def apply_gradients(state: TrainState, gradients: Gradients) -> tuple[TrainState, Telemetry]:
    """Update the state where everything is finite, and report the step.

    An update that alone is not finite, by a rate out of all bounds, is not added either; the moments, which it does not
    enter, have moved on then. Asking for its norm before they move would keep a second copy of them.
    """
    cfg = state.cfg
    sums = gradients.sums
    with jax.named_scope("norms"):
        norms = leaf_norms(gradients.grads)
        loss, grad_norm = sums.nll / sums.count, total_norm(norms)
        variance = sums.squares / sums.count - jnp.square(loss)
        still = still_rows(gradients.grads.embed, cfg.model.vocab_size)
    with jax.named_scope("optimizer"):
        applied = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        known = {"norm": grad_norm, "applied": applied}
        updates, opt_state = optimizer(cfg).update(gradients.grads, state.opt_state, state.params, **known)
        update_norms = leaf_norms(updates)
        finite = applied & jnp.isfinite(total_norm(update_norms))
        params = jax.tree.map(lambda p, u: jnp.where(finite, p + u, p), state.params, updates)
        update_norms = {name: jnp.where(finite, norm, 0.0) for name, norm in update_norms.items()}
    with jax.named_scope("norms"):
        param_norms = leaf_norms(params)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    telemetry = Telemetry(
        step=state.step + 1,
        loss=loss,
        loss_spread=jnp.sqrt(jnp.where(variance < 0.0, 0.0, variance)),
        z_loss=sums.z / sums.count,
        labels=sums.count,
        content=gradients.content,
        grad_norm=grad_norm,
        clipped=(grad_norm > cfg.optim.clip_norm) & (cfg.optim.clip_norm > 0),
        param_norm=total_norm(param_norms),
        update_norm=total_norm(update_norms),
        lr=schedule_of(cfg.optim, cfg.train.steps)(state.opt_state[-1].count),
        loss_scale=state.loss_scale.scale,
        finite=finite,
        skipped=skipped,
        leaf_grad_norms=norms,
        leaf_param_norms=param_norms,
        leaf_update_norms=update_norms,
        embed_rows_still=still,
        similarity=gradients.similarity,
        activations=gradients.stats,
        backward=gradients.backward,
    )
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        loss_scale=state.loss_scale.next(finite, policy(cfg)),
        skipped=skipped,
    )
    return state, telemetry


def _train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Telemetry]:
    key = jax.random.fold_in(state.key, state.step)
    scale = state.loss_scale.scale
    return apply_gradients(state, compute_gradients(state.params, batch, state.cfg, loss_scale=scale, key=key))


train_step = jax.jit(_train_step, donate_argnames="state")
"""`train_step(state, batch) -> (state, telemetry)`: one compiled step. The state's buffers are donated: use the new one."""


def score(params: Params, batch: Batch, cfg: RunConfig) -> jax.Array:
    """Negative log likelihood of each label in nats, float32 [B, T], without dropout; exactly 0 where not supervised."""
    x_BTD, _ = _activations(params, batch, cfg)
    nll_BT = head_nll(params, x_BTD, batch.labels, cfg.model, chunk=cfg.train.loss_chunk, **_options(cfg))
    return jnp.where(batch.loss_mask, nll_BT, 0.0)


score_step = jax.jit(score, static_argnames="cfg")
"""`score`, compiled: what validation, evaluation and the probes call."""
