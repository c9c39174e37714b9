"""The parameters of the transformer, as one tree of specs from which every other view of them derives.

A part that a config leaves out (norms, biases, an untied head) is None, which is no leaf.
Axes: L layer, D model, N query head, K key/value head, H head width, F hidden, V vocabulary (padded).
"""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

from jaxlm.config.schema import ModelConfig
from jaxlm.model.spec import ParamSpec, abstract_tree, init_tree

Leaf = Any  # jax.Array | ParamSpec | jax.ShapeDtypeStruct | NamedSharding: one tree, many views


@struct.dataclass
class Block:
    """One layer's parameters, stacked over layers (axis L first)."""

    attn_norm: Leaf
    wq: Leaf
    wk: Leaf
    wv: Leaf
    wo: Leaf
    q_bias: Leaf
    k_bias: Leaf
    v_bias: Leaf
    o_bias: Leaf
    q_norm: Leaf
    k_norm: Leaf
    mlp_norm: Leaf
    w_gate: Leaf
    w_up: Leaf
    w_down: Leaf


@struct.dataclass
class Params:
    """All parameters. head is None where it is the embedding."""

    embed: Leaf
    blocks: Block
    final_norm: Leaf
    head: Leaf


def param_specs(cfg: ModelConfig) -> Params:
    """The spec tree of a model.

    Weights start normal with standard deviation fan_in**-0.5; those that write to the residual stream are smaller by
    (2 L)**0.5, so that its variance does not grow with depth (Radford et al. 2019, section 2.3). The embedding (and an
    untied head) starts with `init_std`.
    """
    L, D, N, K, H, F = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.kv_heads, cfg.head_width, cfg.ff_width
    V = cfg.padded_vocab
    residual = (2 * L) ** -0.5
    normed = cfg.norm != "none"

    def weight(shape: tuple[int, ...], dims: str, fan_in: int, scale: float = 1.0) -> ParamSpec:
        return ParamSpec(shape, dims, "normal", std=scale * fan_in**-0.5)

    def when(present: bool, shape: tuple[int, ...], dims: str, init: Any) -> ParamSpec | None:
        return ParamSpec(shape, dims, init) if present else None

    return Params(
        embed=ParamSpec((V, D), "VD", "normal", std=cfg.init_std),
        blocks=Block(
            attn_norm=when(normed, (L, D), "LD", "ones"),
            wq=weight((L, D, N, H), "LDNH", D),
            wk=weight((L, D, K, H), "LDKH", D),
            wv=weight((L, D, K, H), "LDKH", D),
            wo=weight((L, N, H, D), "LNHD", N * H, residual),
            q_bias=when(cfg.attention_bias, (L, N, H), "LNH", "zeros"),
            k_bias=when(cfg.attention_bias, (L, K, H), "LKH", "zeros"),
            v_bias=when(cfg.attention_bias, (L, K, H), "LKH", "zeros"),
            o_bias=when(cfg.attention_bias, (L, D), "LD", "zeros"),
            q_norm=when(cfg.qk_norm, (L, H), "LH", "ones"),
            k_norm=when(cfg.qk_norm, (L, H), "LH", "ones"),
            mlp_norm=when(normed, (L, D), "LD", "ones"),
            w_gate=weight((L, D, F), "LDF", D) if cfg.ffn == "swiglu" else None,
            w_up=weight((L, D, F), "LDF", D),
            w_down=weight((L, F, D), "LFD", F, residual),
        ),
        final_norm=when(cfg.norm == "pre", (D,), "D", "ones"),
        head=None if cfg.tie_embeddings else ParamSpec((V, D), "VD", "normal", std=cfg.init_std),
    )


def init_params(cfg: ModelConfig, key: jax.Array) -> Params:
    """Initial parameters, float32. key: a JAX PRNG key; every leaf folds in the hash of its own path."""
    return init_tree(param_specs(cfg), key)


def abstract_params(cfg: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without arrays."""
    return abstract_tree(param_specs(cfg))
