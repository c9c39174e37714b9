"""Attention on Hopper, backward: two kernels that each compute the scores anew, so that neither adds to what the other writes.

Seven products for a tile of scores instead of five buy sums whose order is fixed, and so results that are equal bit by bit.

Axes: B batch, T query, S key, N query head, K key/value head, H head width.
"""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.hopper import warpgroup
from pallas_kernels.hopper.dkv import gradients_of_keys_and_values
from pallas_kernels.hopper.dq import gradient_of_queries
from pallas_kernels.hopper.tiling import Tiling
from pallas_kernels.ranges import KeyRanges


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array,
    end_BT: jax.Array,
    lse_BTN: jax.Array,
    delta_BTN: jax.Array,
    d_out_BTNH: jax.Array,
    *,
    scale: float,
    softcap: float,
    tiling: Tiling,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v, in their dtypes. delta_BTN: float32, out . d_out of each row less the gradient by its lse.

    lse may be that of more keys than are given here: then the gradients are the part of these keys. d_out is rounded to the
    dtype of the queries; the rest is as in `forward`.
    """
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    ranges = KeyRanges(start_BT, end_BT).within(S)
    q, k, v, d_out = (warpgroup.padded(x) for x in (q_BTNH, k_BSKH, v_BSKH, d_out_BTNH.astype(q_BTNH.dtype)))
    rows_BTN = lse_BTN * warpgroup.LOG2E, delta_BTN
    both = {"keys": S, "scale": scale, "softcap": softcap, "interpreted": warpgroup.interpreter(interpret)}
    d_q = gradient_of_queries(q, k, v, ranges, rows_BTN, d_out, blocks=tiling.dq, **both)
    d_k, d_v = gradients_of_keys_and_values(q, k, v, ranges, rows_BTN, d_out, blocks=tiling.dkv, **both)
    return d_q[:, :T], d_k[:, :S], d_v[:, :S]
