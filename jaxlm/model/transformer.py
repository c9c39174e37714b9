"""Decoder-only transformer: ids to logits, as pure functions over a pytree of arrays.

Axes: B batch, T position, S key position, D model, N query head, K key/value head, H head width, F hidden, V vocabulary,
L layer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.axes import check_shape
from jaxlm.config.schema import ModelConfig
from jaxlm.contract import InputError
from jaxlm.model.attention import Mask, attend
from jaxlm.model.head import mask_padding, output_head
from jaxlm.model.layers import ACTIVATIONS, align, dropout, rms_norm, rope_angles, rotate, softcap
from jaxlm.model.params import Block, Params, param_specs
from jaxlm.model.precision import Policy
from jaxlm.model.remat import named_input, rematerialised
from jaxlm.model.spec import named_leaves
from jaxlm.model.stats import BlockStats, of_attention, site, tap
from jaxlm.parallel.rules import PRESETS, AxisRules


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, S, K, H], and the slots [B, T] that this call writes (S or more: not written)."""

    k: jax.Array
    v: jax.Array
    slots_BT: jax.Array


def _biased(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    return x if bias is None else x + align(bias, x).astype(x.dtype)


def _attention(
    h_BTD: jax.Array, layer: Block, cfg: ModelConfig, mask: Mask, rules: AxisRules, cache: LayerCache | None
) -> tuple[jax.Array, LayerCache | None, tuple[jax.Array, jax.Array]]:
    """What attention adds, the cache, the largest score and the entropy."""
    shared_BTD = rules.shared(h_BTD, "BTD", "N")
    q_BTNH = _biased(rules.einsum("BTD,DNH->BTNH", shared_BTD, layer.wq), layer.q_bias)
    h_BTD = shared_BTD if rules.w_K == rules.w_N else h_BTD
    k_BTKH = _biased(rules.einsum("BTD,DKH->BTKH", h_BTD, layer.wk), layer.k_bias)
    v_BTKH = _biased(rules.einsum("BTD,DKH->BTKH", h_BTD, layer.wv), layer.v_bias)
    if cfg.qk_norm:
        q_BTNH = rms_norm(q_BTNH, layer.q_norm, eps=cfg.norm_eps)
        k_BTKH = rms_norm(k_BTKH, layer.k_norm, eps=cfg.norm_eps)
    if cfg.pos == "rope":
        angles = rope_angles(mask.positions_BT, cfg.head_width, theta=cfg.rope_theta)
        q_BTNH = rotate(q_BTNH, angles, pairing=cfg.rope_pairing)
        k_BTKH = rotate(k_BTKH, angles, pairing=cfg.rope_pairing)
    if cache is not None:
        rows = jnp.arange(h_BTD.shape[0])[:, None]
        k_BTKH = cache.k.at[rows, cache.slots_BT].set(k_BTKH.astype(cache.k.dtype), mode="drop")
        v_BTKH = cache.v.at[rows, cache.slots_BT].set(v_BTKH.astype(cache.v.dtype), mode="drop")
        cache = LayerCache(k_BTKH, v_BTKH, cache.slots_BT)
    attended = attend(q_BTNH, k_BTKH, v_BTKH, mask, cfg, rules)
    out_BTD = _biased(rules.einsum("BTNH,NHD->BTD", attended.out_BTNH, layer.wo), layer.o_bias)
    return out_BTD, cache, of_attention(attended)


def _feed_forward(h_BTD: jax.Array, layer: Block, cfg: ModelConfig, rules: AxisRules) -> jax.Array:
    h_BTD = rules.shared(h_BTD, "BTD", "F")
    up_BTF = rules.einsum("BTD,DF->BTF", h_BTD, layer.w_up)
    if cfg.ffn == "swiglu":
        up_BTF = ACTIVATIONS[cfg.ffn](rules.einsum("BTD,DF->BTF", h_BTD, layer.w_gate)) * up_BTF
    else:
        up_BTF = ACTIVATIONS[cfg.ffn](up_BTF)
    return rules.einsum("BTF,FD->BTD", up_BTF, layer.w_down)


def block(
    x_BTD: jax.Array,
    layer: Block,
    cfg: ModelConfig,
    mask: Mask,
    *,
    rules: AxisRules,
    cache: LayerCache | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, BlockStats, LayerCache | None]:
    """One layer. x_BTD: activations in the compute dtype; `layer` is one layer's parameters, matrices in the same dtype.

    Returns activations of the same shape, this layer's statistics, and the cache with this call's keys and values.
    norm: "pre" is x + f(norm(x)) (Xiong et al. 2020), "post" is norm(x + f(x)) (Vaswani et al. 2017), "none" is x + f(x).
    residual: without it, "x +" is left out.
    """
    keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
    pre, post = cfg.norm == "pre", cfg.norm == "post"
    residual = site(x_BTD)
    with jax.named_scope("attention"):
        h_BTD = rms_norm(x_BTD, layer.attn_norm, eps=cfg.norm_eps) if pre else x_BTD
        attn_BTD, cache, of_scores = _attention(h_BTD, layer, cfg, mask, rules, cache)
        added_BTD = dropout(attn_BTD, cfg.dropout, keys[0])
        x_BTD = x_BTD + added_BTD if cfg.residual else added_BTD
        x_BTD = rms_norm(x_BTD, layer.attn_norm, eps=cfg.norm_eps) if post else x_BTD
    with jax.named_scope("feed_forward"):
        h_BTD = rms_norm(x_BTD, layer.mlp_norm, eps=cfg.norm_eps) if pre else x_BTD
        mlp_BTD = _feed_forward(h_BTD, layer, cfg, rules)
        added_BTD = dropout(mlp_BTD, cfg.dropout, keys[1])
        x_BTD = x_BTD + added_BTD if cfg.residual else added_BTD
        x_BTD = rms_norm(x_BTD, layer.mlp_norm, eps=cfg.norm_eps) if post else x_BTD
    return x_BTD, BlockStats(residual, site(attn_BTD), site(mlp_BTD), *of_scores), cache


def _layer_in_use(layer: Block, dims: Block, policy: Policy, rules: AxisRules) -> Block:
    """One layer's weights, cast to the compute dtype before they are gathered, so that half the bytes travel.

    Vectors stay as they are: the gains of norms are float32 in every policy (in bfloat16 one near 1 would move by 1/128).
    """
    return jax.tree.map(lambda w, d: rules.gather(w if len(d) == 1 else w.astype(policy.compute), d), layer, dims)


def hidden(
    params: Params,
    tokens_BT: jax.Array,
    cfg: ModelConfig,
    mask: Mask,
    *,
    policy: Policy = Policy(),
    rules: AxisRules = PRESETS["single"],
    dropout_key: jax.Array | None = None,
    cache: LayerCache | None = None,
    remat: str = "none",
    sinks_L2: jax.Array | None = None,
) -> tuple[jax.Array, BlockStats, LayerCache | None]:
    """Ids to the last activations, normed: x_BTD in the compute dtype, statistics [L], and the cache.

    cache: keys and values stacked over layers [L, B, S, K, H], with this call's slots; None in training. remat: what the
    backward pass computes again, see `jaxlm.model.remat`. sinks_L2: where the statistics of the backward pass go, see
    `jaxlm.model.stats.tap`. Raises ValueError for a mask of other positions than the ids.
    """
    check_shape("mask.positions", mask.positions_BT, "BT", **check_shape("tokens", tokens_BT, "BT"))
    dims = jax.tree.map(lambda spec: spec.dims[1:], param_specs(cfg).blocks)

    def step(x_BTD: jax.Array, scanned: tuple) -> tuple[jax.Array, tuple]:
        layer, kv, key, sink_2 = scanned
        x_BTD = named_input(x_BTD if sink_2 is None else tap(x_BTD, sink_2))
        layer = _layer_in_use(layer, dims, policy, rules)
        layer_cache = None if cache is None else LayerCache(kv[0], kv[1], cache.slots_BT)
        x_BTD, stats, layer_cache = block(x_BTD, layer, cfg, mask, rules=rules, cache=layer_cache, dropout_key=key)
        return x_BTD, (stats, None if layer_cache is None else (layer_cache.k, layer_cache.v))

    step = rematerialised(step, remat, scanned=cfg.scan_layers)
    with jax.named_scope("embedding"):
        table_VD = rules.gather(params.embed.astype(policy.compute), "VD")
        x_BTD = rules.rows(table_VD, tokens_BT)
    keys = None if dropout_key is None else jax.random.split(dropout_key, cfg.n_layers)
    scanned = (params.blocks, None if cache is None else (cache.k, cache.v), keys, sinks_L2)
    if cfg.scan_layers:
        x_BTD, (stats, kv) = jax.lax.scan(step, x_BTD, scanned)
    else:
        outputs = []
        for index in range(cfg.n_layers):
            with jax.named_scope(f"layer_{index}"):
                x_BTD, out = step(x_BTD, jax.tree.map(lambda leaf, i=index: leaf[i], scanned))
            outputs.append(out)
        stats, kv = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    if cfg.norm == "pre":
        x_BTD = rms_norm(x_BTD, rules.gather(params.final_norm, "D"), eps=cfg.norm_eps)
    return x_BTD, stats, None if cache is None else LayerCache(kv[0], kv[1], cache.slots_BT)


def project(params: Params, x_BTD: jax.Array, cfg: ModelConfig, *, policy: Policy, rules: AxisRules) -> jax.Array:
    """Activations to logits over the padded vocabulary, in `policy.logits`; padded logits are -1e30."""
    with jax.named_scope("head"):
        head_VD = rules.gather(output_head(params).astype(policy.compute), "VD")
        logits_BTV = rules.einsum("BTD,VD->BTV", x_BTD, head_VD, preferred_element_type=jnp.dtype(policy.logits))
        return mask_padding(softcap(logits_BTV, cfg.logit_softcap), cfg)


def forward(
    params: Params,
    tokens_BT: jax.Array,
    cfg: ModelConfig,
    *,
    mask: Mask | None = None,
    policy: Policy = Policy(),
    rules: AxisRules = PRESETS["single"],
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Logits_BTV over the vocabulary (unpadded), float32, for ids tokens_BT, int32 [B, T].

    mask: causal from position 0 by default; `Mask.packed` for several documents a row. Dropout needs a key.
    Raises ValueError for parameters of another config, ids that are no integers or of the wrong rank, or more positions than
    `context_length`; and for ids out of range where they are concrete. Traced ones are not looked at here (JAX clamps them
    without a word): the batch contract does that (`jaxlm.data.check_batch`).
    """
    tokens_BT = _checked_ids(tokens_BT, cfg)
    size = check_shape("tokens", tokens_BT, "BT")
    check_length(size["T"], cfg)
    _check_params(params, cfg)
    mask = Mask.causal(size["B"], size["T"], window=cfg.window) if mask is None else mask
    x_BTD, _, _ = hidden(params, tokens_BT, cfg, mask, policy=policy, rules=rules, dropout_key=dropout_key)
    logits_BTV = project(params, x_BTD, cfg, policy=policy, rules=rules)
    return logits_BTV[..., : cfg.vocab_size]


def _check_params(params: Params, cfg: ModelConfig) -> None:
    """Raise ValueError, naming the first leaf, where the parameters are not those of the config."""
    wanted = {name: spec.shape for name, spec in named_leaves(param_specs(cfg)).items()}
    held = {name: tuple(leaf.shape) for name, leaf in named_leaves(params).items()}
    for name in (*wanted, *held):
        if wanted.get(name) != held.get(name):
            raise ValueError(
                f"params: expected those of the config, {name} {list(wanted.get(name, ())) or 'left out'}, "
                f"found {list(held.get(name, ())) or 'none'}; make them with init_params, or take the config of their run"
            )


def _checked_ids(tokens_BT: jax.typing.ArrayLike, cfg: ModelConfig) -> jax.Array:
    """Ids as an array. Raises ValueError for what can be none."""
    tokens = jnp.asarray(tokens_BT)
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.size == 0:
        raise ValueError(f"tokens: expected at least one integer id, found {tokens.dtype} {list(tokens.shape)}")
    if not isinstance(tokens, jax.core.Tracer) and tokens.is_fully_addressable:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= cfg.vocab_size:
            raise ValueError(f"tokens: expected ids in 0..{cfg.vocab_size - 1}, found ids in {low}..{high}")
    return tokens


def check_length(length: int, cfg: ModelConfig) -> None:
    """Raise InputError where a sequence is longer than the positions that the model is trained on."""
    if length > cfg.context_length:
        raise InputError(
            f"the sequence has {length} positions; expected at most the trained context, model.context_length = "
            f"{cfg.context_length}. Shorten it, or train with a longer context"
        )
