"""Next-token loss, as a sum and a count, so that parts of a batch can be added exactly.

Axes: B batch, T position, V vocabulary (padded).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.axes import check_shape


@struct.dataclass
class LossSums:
    """nll: summed negative log likelihood in nats, squares: of its squares. z: summed squared log-sum-exp. count: supervised
    labels. float32 []."""

    nll: jax.Array
    squares: jax.Array
    z: jax.Array
    count: jax.Array


def token_nll(logits_BTV: jax.Array, labels_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of each label, and the log-sum-exp of its logits: float32 [B, T] each, in nats.

    The likelihood of a label that is none of the V is NaN.
    The label's logit is picked by a masked sum over V, not by a gather, so that a sharded vocabulary stays sharded.
    """
    check_shape("labels", labels_BT, "BT", **{k: v for k, v in check_shape("logits", logits_BTV, "BTV").items() if k != "V"})
    logits_BTV = logits_BTV.astype(jnp.float32)
    peak_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    lse_BT = peak_BT + jnp.log(jnp.sum(jnp.exp(logits_BTV - peak_BT[..., None]), axis=-1))
    is_label = jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)[None, None, :] == labels_BT[..., None]
    picked_BT = jnp.sum(jnp.where(is_label, logits_BTV, 0.0), axis=-1)
    known_BT = (labels_BT >= 0) & (labels_BT < logits_BTV.shape[-1])
    return jnp.where(known_BT, lse_BT - picked_BT, jnp.nan), lse_BT


def masked_sums(nll_BT: jax.Array, lse_BT: jax.Array, loss_mask_BT: jax.Array) -> LossSums:
    """Sums over the supervised positions (loss_mask_BT true). An unsupervised position adds exactly zero."""
    return LossSums(
        nll=jnp.sum(jnp.where(loss_mask_BT, nll_BT, 0.0)),
        squares=jnp.sum(jnp.where(loss_mask_BT, jnp.square(nll_BT), 0.0)),
        z=jnp.sum(jnp.where(loss_mask_BT, jnp.square(lse_BT), 0.0)),
        count=jnp.sum(loss_mask_BT, dtype=jnp.float32),
    )


def loss_sums(logits_BTV: jax.Array, labels_BT: jax.Array, loss_mask_BT: jax.Array) -> LossSums:
    """`masked_sums` of logits that exist. Training makes them block by block instead (`jaxlm.model.head`)."""
    return masked_sums(*token_nll(logits_BTV, labels_BT), loss_mask_BT)
