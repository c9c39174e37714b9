"""Attention over key ranges, forward and backward, in XLA: what the model calls on a device without a kernel.

The backward pass recomputes the weights from the log-sum-exp of each row (Dao et al. 2022, algorithm 4), so that neither
direction keeps a matrix of T x S for it. On a CPU the rows of a batch come one after the other, where the scores of one
row fit the cache; elsewhere all at once.

Axes: B batch, T query, S key, N query head, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.ranges import KeyRanges
from pallas_kernels.reference import MASKED, matmul_precision


def attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges: KeyRanges, *, softcap: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention, softmax in float32; both results are differentiable in q, k and v.

    Query head n reads key/value head n // (N / K). softcap: c * tanh(scores / c) before the mask; 0 is off.
    Returns out_BTNH in the dtype of `v`, zero where a row sees no key, and lse_BTN in float32 (-1e30 there).
    Raises ValueError where N is no multiple of K. Source: Vaswani et al. 2017, section 3.2.1; grouped queries: Ainslie et al.
    2023.
    """
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if N % K:
        raise ValueError(f"attention: expected query heads in multiples of the {K} key/value heads, found {N}")
    return _attention(q_BTNH, k_BSKH, v_BSKH, ranges.start_BT, ranges.end_BT, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, softcap: float) -> tuple:
    return _over_rows(functools.partial(_forward_row, softcap=softcap), q, k, v, start, end)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, softcap: float) -> tuple:
    out, lse = _attention(q, k, v, start, end, softcap)
    return (out, lse), (q, k, v, start, end, out, lse)


def attention_gradients(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    d_out_BTNH: jax.Array,
    d_lse_BTN: jax.Array,
    *,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v, in their dtypes, from what `attention` returned and the gradients by both of its results.

    out and lse may be those of more keys than are given here: then the gradients are the part of these keys.
    """
    arrays = (q_BTNH, k_BSKH, v_BSKH, *ranges, out_BTNH, lse_BTN, d_out_BTNH, d_lse_BTN)
    return _over_rows(functools.partial(_backward_row, softcap=softcap), *arrays)


def _backward(softcap: float, residuals: tuple, cotangents: tuple) -> tuple:
    q, k, v, start, end, out, lse = residuals
    return *attention_gradients(q, k, v, KeyRanges(start, end), out, lse, *cotangents, softcap=softcap), None, None


_attention.defvjp(_forward, _backward)


def attention_path(platform: str) -> str:
    """Which computation `attention` is on a platform, in words; runs record it, since the order of sums differs."""
    return "xla, rows in sequence" if platform == "cpu" else "xla, rows at once"


def _over_rows(row: Callable, *arrays: jax.Array) -> Any:
    """`row` on every element of the leading axis B: in sequence on a CPU, vectorised elsewhere."""
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *xs: jax.lax.map(lambda x: row(*x), xs), default=lambda *xs: jax.vmap(row)(*xs)
    )


# ---- one row of the batch; heads come before positions, and the queries of a group are read as one matrix --------------


def _grouped(x_TNH: jax.Array, K: int) -> jax.Array:
    """[T, N, ...] -> [K, G * T, ...]."""
    T, N = x_TNH.shape[:2]
    x = x_TNH.reshape(T, K, N // K, *x_TNH.shape[2:])
    return jnp.moveaxis(x, 0, 2).reshape(K, N // K * T, *x_TNH.shape[2:])


def _ungrouped(x: jax.Array, T: int) -> jax.Array:
    """[K, G * T, ...] -> [T, N, ...]."""
    K, G = x.shape[0], x.shape[1] // T
    return jnp.moveaxis(x.reshape(K, G, T, *x.shape[2:]), 2, 0).reshape(T, K * G, *x.shape[2:])


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product, summed and returned in float32."""
    return jnp.einsum(equation, a, b, precision=matmul_precision(a, b), preferred_element_type=jnp.float32)


def _scores(q: jax.Array, k_KSH: jax.Array, start_T: jax.Array, end_T: jax.Array, softcap: float) -> tuple:
    """Scores [K, G * T, S] in float32 after the softcap, and which of them count, [1, G * T, S]."""
    scores = _product("KRH,KSH->KRS", q, k_KSH) * q.shape[-1] ** -0.5
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    s = jnp.arange(k_KSH.shape[1], dtype=jnp.int32)[None, :]
    seen_TS = (s >= start_T[:, None]) & (s < end_T[:, None])
    return scores, jnp.tile(seen_TS, (q.shape[1] // len(start_T), 1))[None]


def _forward_row(
    q_TNH: jax.Array, k_SKH: jax.Array, v_SKH: jax.Array, start_T: jax.Array, end_T: jax.Array, *, softcap: float
) -> tuple[jax.Array, jax.Array]:
    T, K = len(q_TNH), k_SKH.shape[1]
    k, v = jnp.moveaxis(k_SKH, 1, 0), jnp.moveaxis(v_SKH, 1, 0)
    scores, seen = _scores(_grouped(q_TNH, K), k, start_T, end_T, softcap)
    scores = jnp.where(seen, scores, MASKED)
    peak = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(seen, jnp.exp(scores - peak), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    empty = total == 0.0
    safe = jnp.where(empty, 1.0, total)
    out = _product("KRS,KSH->KRH", weights.astype(v.dtype), v) / safe
    lse = jnp.where(empty, MASKED, peak + jnp.log(safe))[..., 0]
    return _ungrouped(out.astype(v.dtype), T), _ungrouped(lse, T)


def _backward_row(
    q_TNH: jax.Array,
    k_SKH: jax.Array,
    v_SKH: jax.Array,
    start_T: jax.Array,
    end_T: jax.Array,
    out_TNH: jax.Array,
    lse_TN: jax.Array,
    d_out_TNH: jax.Array,
    d_lse_TN: jax.Array,
    *,
    softcap: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    T, K, scale = len(q_TNH), k_SKH.shape[1], q_TNH.shape[-1] ** -0.5
    k, v = jnp.moveaxis(k_SKH, 1, 0), jnp.moveaxis(v_SKH, 1, 0)
    q, d_out = _grouped(q_TNH, K), _grouped(d_out_TNH, K)
    scores, seen = _scores(q, k, start_T, end_T, softcap)
    weights = jnp.where(seen, jnp.exp(scores - _grouped(lse_TN, K)[..., None]), 0.0)
    d_v = _product("KRS,KRH->KSH", weights.astype(v.dtype), d_out)
    d_weights = _product("KRH,KSH->KRS", d_out, v)
    # d softmax: every weight gains against the mean gain of its row, which is out . d_out; lse adds its own softmax.
    mean = jnp.sum(out_TNH.astype(jnp.float32) * d_out_TNH.astype(jnp.float32), axis=-1) - d_lse_TN
    d_scores = weights * (d_weights - _grouped(mean, K)[..., None])
    if softcap:
        d_scores = jnp.where(seen, d_scores * (1.0 - jnp.square(scores / softcap)), 0.0)
    d_scores = (d_scores * scale).astype(q.dtype)
    d_q = _product("KRS,KSH->KRH", d_scores, k)
    d_k = _product("KRS,KRH->KSH", d_scores, q)
    d_q_TNH = _ungrouped(d_q.astype(q.dtype), T)
    return d_q_TNH, jnp.moveaxis(d_k, 0, 1).astype(k.dtype), jnp.moveaxis(d_v, 0, 1).astype(v.dtype)
