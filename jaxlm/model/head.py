"""The head and its loss, one block of positions after the other: the logits of a whole batch never exist.

A block's logits are read where they were just made. Where gradients are wanted, softmax minus label goes into those of the
activations and of the head at once, so that the backward pass has nothing left but one multiplication. Source: Hsu et al.
2024 (Liger Kernel), fused linear cross-entropy.

Under a mesh every device cuts its own positions into blocks. Where the vocabulary is sharded, maxima, sums and the label's
logit travel between its shards, and logits never do.

Axes: B batch, T position (of a block: of whatever rows), D model, V vocabulary (padded; of one shard where it is sharded).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.axes import check_shape
from jaxlm.config.schema import ModelConfig
from jaxlm.model.layers import softcap
from jaxlm.model.loss import LossSums, masked_sums
from jaxlm.model.params import Params
from jaxlm.model.precision import Policy
from jaxlm.parallel.rules import PRESETS, AxisRules
from pallas_kernels import matmul_precision

SMALLEST = 512  # positions of a derived block, at least: below, adding up the gradient of the head costs more than it saves


class _How(NamedTuple):
    """What is known when the loss is traced."""

    cfg: ModelConfig
    policy: Policy
    rules: AxisRules
    chunk: int
    z_loss: float


def output_head(params: Params) -> jax.Array:
    """The matrix [V, D] that makes logits: the head, or the embedding where they are tied."""
    return params.embed if params.head is None else params.head


def mask_padding(logits: jax.Array, cfg: ModelConfig, *, first: jax.Array | int = 0) -> jax.Array:
    """Logits (vocabulary last) with -1e30 for ids that only pad the vocabulary. first: the id of the first logit."""
    if cfg.padded_vocab == cfg.vocab_size:
        return logits
    real_V = first + jnp.arange(logits.shape[-1], dtype=jnp.int32) < cfg.vocab_size
    return jnp.where(jnp.expand_dims(real_V, tuple(range(logits.ndim - 1))), logits, -1e30)


def block_shape(positions: int, cfg: ModelConfig, chunk: int = 0) -> tuple[int, int]:
    """(number of blocks, positions of a block) into which a device cuts its `positions` = rows * length.

    chunk: positions of a block, at most; 0 takes as many as the model is wide, `SMALLEST` at least. Every block adds to the
    gradient of the head, [V, D]; with D positions its logits, [D, V], are as large as that, so neither dominates the memory
    nor its traffic, whatever the vocabulary and its shards. Blocks are of one size, to compile once: as even as can be, so
    that less than one position a block is padding.
    """
    blocks = math.ceil(positions / (chunk or max(SMALLEST, cfg.d_model)))
    return blocks, math.ceil(positions / blocks)


def head_loss(
    params: Params,
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    loss_mask_BT: jax.Array,
    cfg: ModelConfig,
    *,
    policy: Policy = Policy(),
    rules: AxisRules = PRESETS["single"],
    chunk: int = 0,
    z_loss: float = 0.0,
    scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, LossSums]:
    """scale * (nll + z_loss * z), float32 [], and the sums over the supervised positions (loss_mask_BT true) in nats.

    x_BTD: the last activations, in the compute dtype. chunk: see `block_shape`. scale: what keeps float16 gradients from
    vanishing; it is multiplied in before they are rounded. The objective is differentiable (once) in parameters, activations
    and scale; the sums are not, and count as constants. The gradient of the head is float32, summed in float32 over blocks
    and devices. An unsupervised position adds exactly zero to all of it; a supervised label outside of the vocabulary makes the
    sums NaN, never a plausible number. Raises ValueError for shapes that do not fit.
    """
    size = _checked(params, x_BTD, labels_BT, cfg, chunk)
    check_shape("loss_mask", loss_mask_BT, "BT", **size)
    if loss_mask_BT.dtype != jnp.bool_:
        raise ValueError(
            f"loss_mask: expected bool, true where a label is supervised (weights are none), found {loss_mask_BT.dtype}"
        )
    how = _How(cfg, policy, rules, chunk, z_loss)
    scale = jnp.asarray(scale, jnp.float32)
    objective, sums = _objective(how, output_head(params), x_BTD, labels_BT, loss_mask_BT, scale)
    return objective, jax.lax.stop_gradient(sums)


def head_nll(
    params: Params,
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    cfg: ModelConfig,
    *,
    policy: Policy = Policy(),
    rules: AxisRules = PRESETS["single"],
    chunk: int = 0,
) -> jax.Array:
    """Negative log likelihood of each label in nats, float32 [B, T]; arguments as for `head_loss`. Not for gradients.

    NaN for a label outside of the vocabulary (-100, say, which other libraries take for "ignore").
    """
    _checked(params, x_BTD, labels_BT, cfg, chunk)
    how = _How(cfg, policy, rules, chunk, 0.0)
    return jax.lax.stop_gradient(_by_blocks(how, output_head(params), x_BTD, labels_BT)[0])


def _checked(params: Params, x_BTD: jax.Array, labels_BT: jax.Array, cfg: ModelConfig, chunk: int) -> dict[str, int]:
    """The sizes of B and T. Raises ValueError for what does not fit."""
    if type(chunk) is not int or chunk < 0:
        raise ValueError(f"chunk: expected a number of positions, or 0 for a derived one, found {chunk!r}")
    size = check_shape("x", x_BTD, "BTD", D=cfg.d_model)
    check_shape("head", output_head(params), "VD", V=cfg.padded_vocab, D=cfg.d_model)
    check_shape("labels", labels_BT, "BT", B=size["B"], T=size["T"])
    if not jnp.issubdtype(labels_BT.dtype, jnp.integer) or not labels_BT.size:
        raise ValueError(f"labels: expected at least one integer id, found {labels_BT.dtype} {list(labels_BT.shape)}")
    return {"B": size["B"], "T": size["T"]}


# ---- the gradient is made on the way forward -----------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _objective(
    how: _How, head_VD: jax.Array, x_BTD: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array, scale: jax.Array
) -> tuple[jax.Array, LossSums]:
    nll_BT, lse_BT = _by_blocks(how, head_VD, x_BTD, labels_BT)
    sums = masked_sums(nll_BT, lse_BT, mask_BT)
    return (sums.nll + how.z_loss * sums.z) * scale, sums


def _forward(
    how: _How, head_VD: jax.Array, x_BTD: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array, scale: jax.Array
) -> tuple[tuple[jax.Array, LossSums], tuple]:
    weights_BT = jnp.where(mask_BT, scale, 0.0)
    nll_BT, lse_BT, d_x_BTD, d_head_VD = _by_blocks(how, head_VD, x_BTD, labels_BT, weights_BT)
    sums = masked_sums(nll_BT, lse_BT, mask_BT)
    unscaled = sums.nll + how.z_loss * sums.z
    return (unscaled * scale, sums), (d_head_VD.astype(head_VD.dtype), d_x_BTD, unscaled)


def _backward(how: _How, residuals: tuple, cotangents: tuple[jax.Array, LossSums]) -> tuple:
    d_head_VD, d_x_BTD, unscaled = residuals
    by = cotangents[0]
    return d_head_VD * by, (d_x_BTD.astype(jnp.float32) * by).astype(d_x_BTD.dtype), None, None, unscaled * by


_objective.defvjp(_forward, _backward)


# ---- blocks, on every device -----------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Mesh axes. positions: on which B and T lie; vocab: on which V lies in use; stored_v, stored_d: on which the head lies
    only where it is stored, and to which its gradient is scattered."""

    positions: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    stored_v: tuple[str, ...] = ()
    stored_d: tuple[str, ...] = ()


def _by_blocks(
    how: _How, head_VD: jax.Array, x_BTD: jax.Array, labels_BT: jax.Array, weights_BT: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """nll_BT and lse_BT (log-sum-exp), float32. With weights_BT, the weight of each position in the objective, also the
    gradients of that in x_BTD, in its dtype, and in the head as it is stored, float32."""
    rules = how.rules
    used_VD = rules.gather(head_VD.astype(how.policy.compute), "VD")
    operands = (used_VD, x_BTD, labels_BT, *(() if weights_BT is None else (weights_BT,)))
    if jax.sharding.get_abstract_mesh().empty:
        return _local(how, _Layout(), *operands)
    stored_v, stored_d = (tuple(axis for axis in axes if axis in rules.a_B) for axes in (rules.w_V, rules.w_D))
    vocab = tuple(axis for axis in rules.w_V if axis not in rules.a_B)
    if rules.w_V != vocab + stored_v:
        raise ValueError(f"rules: expected w_V with the axes of the batch last, {vocab + stored_v}, found {rules.w_V}")
    layout = _Layout(rules.a_B + rules.a_T, vocab, stored_v, stored_d)
    x, rows = rules.activation("BTD"), rules.activation("BT")
    into = (rules.used("VD"), x, rows, rows)
    out = (rows, rows, x, rules.weight("VD"))
    local = functools.partial(_local, how, layout)
    mapped = jax.shard_map(local, in_specs=into[: len(operands)], out_specs=out if len(operands) == 4 else out[:2])
    return mapped(*operands)


def _local(
    how: _How,
    layout: _Layout,
    head_VD: jax.Array,
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    weights_BT: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """`_by_blocks` for one device's positions and shard of the vocabulary."""
    shape = labels_BT.shape
    blocks, size = block_shape(math.prod(shape), how.cfg, how.chunk)

    def cut(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        flat = jnp.pad(array.reshape(-1, *rest), ((0, blocks * size - math.prod(shape)), *((0, 0) for _ in rest)))
        return flat.reshape(blocks, size, *rest)

    def joined(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        return array.reshape(-1, *rest)[: math.prod(shape)].reshape(*shape, *rest)

    def step(d_head: jax.Array | None, block: tuple[jax.Array, ...]) -> tuple[Any, tuple[jax.Array, ...]]:
        return _block(how, layout.vocab, head_VD, d_head, *block)

    with jax.named_scope("head_loss"):
        if weights_BT is None:
            _, (nll, lse) = jax.lax.scan(step, None, (cut(x_BTD), cut(labels_BT)))
            return joined(nll), joined(lse)
        d_head = _varying(jnp.zeros(head_VD.shape[::-1], jnp.float32), layout.positions + layout.vocab)
        d_head, (nll, lse, d_x) = jax.lax.scan(step, d_head, (cut(x_BTD), cut(labels_BT), cut(weights_BT)))
        return joined(nll), joined(lse), joined(d_x), _over_positions(d_head, layout)


def _block(
    how: _How,
    vocab: tuple[str, ...],
    head_VD: jax.Array,
    d_head_DV: jax.Array | None,
    x_TD: jax.Array,
    labels_T: jax.Array,
    weights_T: jax.Array | None = None,
) -> tuple[jax.Array | None, tuple[jax.Array, ...]]:
    """One block: its part of the results, and the gradient of the head with this block's added.

    That is kept as [D, V]: D is mostly a power of two, which rows of a result on a CPU had better not be (`parallel.products`).
    """
    product = functools.partial(jnp.einsum, precision=matmul_precision(x_TD, head_VD), preferred_element_type=jnp.float32)
    capped_TV = softcap(product("TD,VD->TV", x_TD, head_VD), how.cfg.logit_softcap)
    size = head_VD.shape[0]
    first = jax.lax.axis_index(vocab) * size if vocab else 0
    logits_TV = mask_padding(capped_TV, how.cfg, first=first)
    known_T = (labels_T >= 0) & (labels_T < how.cfg.vocab_size)
    labels_T = labels_T - first  # within the shard; the label of a position lies in one of them
    here_T = (labels_T >= 0) & (labels_T < size)
    picked_T = jnp.where(here_T, jnp.take_along_axis(logits_TV, labels_T[:, None], axis=1, mode="clip")[:, 0], 0.0)
    peak_T = _reduced(jax.lax.pmax, jnp.max(logits_TV, axis=1), vocab)
    exp_TV = jnp.exp(logits_TV - peak_T[:, None])
    sum_T, picked_T = _reduced(jax.lax.psum, (jnp.sum(exp_TV, axis=1), picked_T), vocab)
    lse_T = peak_T + jnp.log(sum_T)
    nll_T = jnp.where(known_T, lse_T - picked_T, jnp.nan)
    if weights_T is None or d_head_DV is None:
        return None, (nll_T, lse_T)
    is_label_TV = jnp.arange(size, dtype=jnp.int32)[None, :] == labels_T[:, None]
    softmax_weight_T = weights_T * (1.0 + 2.0 * how.z_loss * lse_T) / sum_T
    d_TV = softmax_weight_T[:, None] * exp_TV - jnp.where(is_label_TV, weights_T[:, None], 0.0)
    if how.cfg.logit_softcap:
        d_TV = d_TV * (1.0 - jnp.square(capped_TV / how.cfg.logit_softcap))
    d_TV = d_TV.astype(x_TD.dtype)
    d_x_TD = _reduced(jax.lax.psum, product("TV,VD->TD", d_TV, head_VD), vocab).astype(x_TD.dtype)
    return d_head_DV + product("TD,TV->DV", x_TD, d_TV), (nll_T, lse_T, d_x_TD)


def _reduced(reduce: Any, tree: Any, axes: tuple[str, ...]) -> Any:
    return reduce(tree, axes) if axes else tree


def _varying(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """An array that every device along `axes` will have its own value of, which `shard_map` wants to be told."""
    return jax.lax.pcast(array, axes, to="varying") if axes else array


def _over_positions(d_head_DV: jax.Array, layout: _Layout) -> jax.Array:
    """The gradient [V, D] summed over the devices that hold other positions; each keeps what it stores of the head."""
    scattered = layout.stored_v + layout.stored_d
    d_head_DV = _reduced(jax.lax.psum, d_head_DV, tuple(axis for axis in layout.positions if axis not in scattered))
    for dimension, axes in enumerate((layout.stored_d, layout.stored_v)):
        if axes:
            d_head_DV = jax.lax.psum_scatter(d_head_DV, axes, scatter_dimension=dimension, tiled=True)
    return d_head_DV.T
