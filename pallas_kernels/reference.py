"""Attention over key ranges without a kernel: in XLA for every device, and in NumPy float64 as the oracle.

Axes: B batch, T query, S key, N query head, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ranges import KeyRanges

# Finite, so that a row without keys gives exp(0) and not NaN; the row is zeroed afterwards.
MASKED = -1e30
# Where a running maximum begins: above what is masked, whose exponential then is 0.
LOWEST = 0.1 * MASKED


class Attended(NamedTuple):
    """Of every query: out_BTNH, in the dtype of the values, zero where it sees no key; the rest float32. lse_BTN: log-sum-exp
    of its scores, peak_BTN: the largest of them (both -1e30 where it sees no key), mean_BTN: their mean under the weights (0
    there). The entropy of the weights is lse - mean, in nats. Gradients go through out and lse alone."""

    out_BTNH: Any
    lse_BTN: Any
    peak_BTN: Any
    mean_BTN: Any


def matmul_precision(*operands: jax.Array) -> jax.lax.Precision | None:
    """Full precision where all operands are float32, which accelerators otherwise round to TF32 or bfloat16 without a word."""
    return jax.lax.Precision.HIGHEST if all(x.dtype == jnp.float32 for x in operands) else None


def attention_reference(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges: KeyRanges, *, softcap: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention, softmax in float32.

    Query head n reads key/value head n // (N / K). softcap: c * tanh(scores / c) before the mask; 0 is off.
    Returns out_BTNH in the dtype of `v`, zero where a row sees no key, and lse_BTN in float32 (-1e30 there).
    Source: Vaswani et al. 2017, section 3.2.1; grouped queries: Ainslie et al. 2023.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BTKGH = q_BTNH.reshape(B, T, K, G, H)
    product = functools.partial(jnp.einsum, precision=matmul_precision(q_BTNH, k_BSKH, v_BSKH))
    scores = product("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * H**-0.5
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    seen_BTS = ranges.mask(S)
    scores = jnp.where(seen_BTS[:, None, None], scores, MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(seen_BTS[:, None, None], jnp.exp(scores - peak), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    empty = total == 0.0
    safe = jnp.where(empty, 1.0, total)
    weights = (weights / safe).astype(v_BSKH.dtype)
    out = product("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)
    lse = jnp.where(empty, MASKED, peak + jnp.log(safe))[..., 0]
    return out, jnp.transpose(lse, (0, 3, 1, 2)).reshape(B, T, N)


def attention_float64(
    q_BTNH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, start_BT: np.ndarray, end_BT: np.ndarray, softcap: float = 0.0
) -> Attended:
    """The same in NumPy float64, one query at a time: slow, and written to be read."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    B, T, N, H = q.shape
    group = N // k.shape[2]
    out, mean = np.zeros((B, T, N, H)), np.zeros((B, T, N))
    lse, peak = np.full((B, T, N), MASKED), np.full((B, T, N), MASKED)
    for b in range(B):
        for t in range(T):
            keys = slice(max(int(start_BT[b, t]), 0), min(int(end_BT[b, t]), k.shape[1]))
            if keys.start >= keys.stop:
                continue
            for n in range(N):
                scores = k[b, keys, n // group] @ q[b, t, n] / np.sqrt(H)
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
                lse[b, t, n] = scores.max() + np.log(weights.sum())
                peak[b, t, n] = scores.max()
                mean[b, t, n] = weights / weights.sum() @ scores
    return Attended(out, lse, peak, mean)
