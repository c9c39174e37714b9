"""The transformer a second time: NumPy float64, one document and one query at a time, written from the papers alone.

RMSNorm: Zhang & Sennrich 2019, eq. 4. RoPE: Su et al. 2021, eq. 15, as a product of complex numbers. Attention: Vaswani et
al. 2017, section 3.2; grouped queries: Ainslie et al. 2023; windows: Beltagy et al. 2020; caps: Gemma 2 report 2024. Gated
feed-forward: Shazeer 2020, eq. 6. GELU by tanh: Hendrycks & Gimpel 2016, section 2.
"""

from __future__ import annotations

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def normed(x, gain, eps):
    return gain * x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + eps)


def rotated(x, position, theta, pairing):
    """x: [heads, width] at one position. Pair j is a complex number that turns by position * theta**(-2j / width)."""
    width = x.shape[-1]
    first = np.arange(width // 2) if pairing == "half" else np.arange(0, width, 2)
    second = first + (width // 2 if pairing == "half" else 1)
    turn = np.exp(1j * position * theta ** (-2.0 * np.arange(width // 2) / width))
    z = (x[:, first] + 1j * x[:, second]) * turn
    out = np.empty_like(x)
    out[:, first], out[:, second] = z.real, z.imag
    return out


def attention(h, p, cfg):
    """h: [T, D]; p: the layer's leaves by name."""
    length, group = len(h), cfg.n_heads // cfg.kv_heads
    q, k, v = (np.tensordot(h, p["w" + name], 1) + p.get(name + "_bias", 0.0) for name in "qkv")
    if cfg.qk_norm:
        q, k = normed(q, p["q_norm"], cfg.norm_eps), normed(k, p["k_norm"], cfg.norm_eps)
    if cfg.pos == "rope":
        q, k = (np.stack([rotated(x[t], t, cfg.rope_theta, cfg.rope_pairing) for t in range(length)]) for x in (q, k))
    out = np.zeros((length, cfg.d_model))
    for t in range(length):
        first = max(0, t + 1 - cfg.window) if cfg.window else 0
        for n in range(cfg.n_heads):
            keys, values = k[first : t + 1, n // group], v[first : t + 1, n // group]
            weights = np.exp(capped(keys @ q[t, n] / np.sqrt(cfg.head_width), cfg.attention_softcap))
            out[t] += weights / weights.sum() @ values @ p["wo"][n]
    return out + p.get("o_bias", 0.0)


def feed_forward(h, p, cfg):
    if cfg.ffn == "swiglu":
        return silu(h @ p["w_gate"]) * (h @ p["w_up"]) @ p["w_down"]
    return {"silu": silu, "gelu": gelu}[cfg.ffn](h @ p["w_up"]) @ p["w_down"]


def document_logits(leaves, cfg, ids):
    """Logits [T, V] of one document from position 0. leaves: arrays by path, `blocks/wq`."""
    w = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}
    x = w["embed"][np.asarray(ids)]
    for index in range(cfg.n_layers):
        p = {path.split("/")[1]: leaf[index] for path, leaf in w.items() if path.startswith("blocks/")}
        for part, gain in ((attention, "attn_norm"), (feed_forward, "mlp_norm")):
            if cfg.norm == "pre":
                x = x + part(normed(x, p[gain], cfg.norm_eps), p, cfg)
            elif cfg.norm == "post":
                x = normed(x + part(x, p, cfg), p[gain], cfg.norm_eps)
            else:
                x = x + part(x, p, cfg)
    if cfg.norm == "pre":
        x = normed(x, w["final_norm"], cfg.norm_eps)
    head = w["embed"] if cfg.tie_embeddings else w["head"]
    return capped(x @ head.T, cfg.logit_softcap)[:, : cfg.vocab_size]
