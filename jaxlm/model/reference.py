"""The transformer a second time: NumPy float64, one document and one query at a time, written from the papers alone.

What the config says is what this computes, so the model is compared with it: in its tests, and in every run before the first
step (the static probe `reference`). It shares no line with `jaxlm.model.transformer`, and is slow.

RMSNorm: Zhang & Sennrich 2019, eq. 4. RoPE: Su et al. 2021, eq. 15, as a product of complex numbers. Attention: Vaswani et
al. 2017, section 3.2; grouped queries: Ainslie et al. 2023; windows: Beltagy et al. 2020; caps: Gemma 2 report 2024. Gated
feed-forward: Shazeer 2020, eq. 6. GELU by tanh: Hendrycks & Gimpel 2016, section 2.

Axes: T position, D model, V vocabulary, L layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxlm.config.schema import ModelConfig

Leaves = Mapping[str, np.ndarray]  # of one layer, by name


def silu(x: np.ndarray) -> np.ndarray:
    """x times its logistic function."""
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap); x itself for a cap of 0."""
    return cap * np.tanh(x / cap) if cap else x


def normed(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm over the last axis."""
    return gain * x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + eps)


def rotated(x: np.ndarray, position: int, theta: float, pairing: str) -> np.ndarray:
    """x: [heads, width] at one position. Pair j is a complex number that turns by position * theta**(-2j / width)."""
    width = x.shape[-1]
    first = np.arange(width // 2) if pairing == "half" else np.arange(0, width, 2)
    second = first + (width // 2 if pairing == "half" else 1)
    turn = np.exp(1j * position * theta ** (-2.0 * np.arange(width // 2) / width))
    z = (x[:, first] + 1j * x[:, second]) * turn
    out = np.empty_like(x)
    out[:, first], out[:, second] = z.real, z.imag
    return out


def attention(h: np.ndarray, p: Leaves, cfg: ModelConfig) -> np.ndarray:
    """What attention adds, [T, D], to h: [T, D]."""
    length, group = len(h), cfg.n_heads // cfg.kv_heads
    q, k, v = (np.tensordot(h, _wide(p["w" + name]), 1) + p.get(name + "_bias", 0.0) for name in "qkv")
    if cfg.qk_norm:
        q, k = normed(q, p["q_norm"], cfg.norm_eps), normed(k, p["k_norm"], cfg.norm_eps)
    if cfg.pos == "rope":
        q, k = (np.stack([rotated(x[t], t, cfg.rope_theta, cfg.rope_pairing) for t in range(length)]) for x in (q, k))
    heads = np.zeros((length, cfg.n_heads, cfg.head_width))
    for t in range(length):
        first = max(0, t + 1 - cfg.window) if cfg.window else 0
        for n in range(cfg.n_heads):
            keys, values = k[first : t + 1, n // group], v[first : t + 1, n // group]
            scores = capped(keys @ q[t, n] / np.sqrt(cfg.head_width), cfg.attention_softcap)
            weights = np.exp(scores - scores.max())
            heads[t, n] = weights / weights.sum() @ values
    return np.tensordot(heads, _wide(p["wo"]), 2) + p.get("o_bias", 0.0)


def feed_forward(h: np.ndarray, p: Leaves, cfg: ModelConfig) -> np.ndarray:
    """What the feed-forward part adds, [T, D], to h: [T, D]."""
    up = h @ _wide(p["w_up"])
    if cfg.ffn == "swiglu":
        return (silu(h @ _wide(p["w_gate"])) * up) @ _wide(p["w_down"])
    return {"silu": silu, "gelu": gelu}[cfg.ffn](up) @ _wide(p["w_down"])


def document_logits(leaves: Mapping[str, np.ndarray], cfg: ModelConfig, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one document from position 0. leaves: arrays by path, `blocks/wq`; of any dtype.

    Each matrix is widened when it is used, so that at no time more than one of them is there twice.
    """
    x = _wide(leaves["embed"][np.asarray(ids)])
    for index in range(cfg.n_layers):
        layer = {path.split("/")[1]: np.asarray(leaf[index]) for path, leaf in leaves.items() if path.startswith("blocks/")}
        for part, gain in ((attention, "attn_norm"), (feed_forward, "mlp_norm")):
            kept = x if cfg.residual else 0.0
            if cfg.norm == "pre":
                x = kept + part(normed(x, layer[gain], cfg.norm_eps), layer, cfg)
            elif cfg.norm == "post":
                x = normed(kept + part(x, layer, cfg), layer[gain], cfg.norm_eps)
            else:
                x = kept + part(x, layer, cfg)
    if cfg.norm == "pre":
        x = normed(x, _wide(leaves["final_norm"]), cfg.norm_eps)
    head = leaves["embed"] if cfg.tie_embeddings else leaves["head"]
    return capped(x @ _wide(head).T, cfg.logit_softcap)[:, : cfg.vocab_size]


def _wide(leaf: np.ndarray) -> np.ndarray:
    return np.asarray(leaf, np.float64)
