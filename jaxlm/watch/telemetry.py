"""What one training step reports, and how it becomes a line of text.

The step returns one pytree of small arrays; no callback leaves the compiled program. Per-layer figures come for nothing:
parameters are stacked over layers, so one reduction over the other axes is one figure a layer.

Axes: L layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.model import BackwardStats, BlockStats, Site
from jaxlm.model.spec import named_leaves


@struct.dataclass
class Telemetry:
    """One training step, as scalars unless said otherwise.

    step: int32, of the step reported, from 1. loss: mean negative log likelihood in nats per supervised label. loss_spread: its
    standard deviation over the labels. z_loss: mean squared log-sum-exp. labels: supervised labels. content: uint32,
    `content_sum` of the batch, which the host compares with its own; in no record. grad_norm: before clipping;
    clipped: whether it was clipped. param_norm: after the update. update_norm: of what was added, 0 where nothing was. lr,
    loss_scale: used in this step. finite: whether the update was applied. skipped: steps skipped in a row. leaf_grad_norms,
    leaf_param_norms, leaf_update_norms: by parameter name, [L] for those of the blocks. embed_rows_still: share of the
    vocabulary's rows of the embedding whose gradient is zero. similarity: of the last activations at supervised positions, see
    `jaxlm.model.similarity`; the mean over micro-batches. activations, backward: of every layer, [L] each.
    """

    step: jax.Array
    loss: jax.Array
    loss_spread: jax.Array
    z_loss: jax.Array
    labels: jax.Array
    content: jax.Array
    grad_norm: jax.Array
    clipped: jax.Array
    param_norm: jax.Array
    update_norm: jax.Array
    lr: jax.Array
    loss_scale: jax.Array
    finite: jax.Array
    skipped: jax.Array
    leaf_grad_norms: dict[str, jax.Array]
    leaf_param_norms: dict[str, jax.Array]
    leaf_update_norms: dict[str, jax.Array]
    embed_rows_still: jax.Array
    similarity: jax.Array
    activations: BlockStats
    backward: BackwardStats


def leaf_norms(tree: Any) -> dict[str, jax.Array]:
    """Euclidean norms by leaf name, float32: [L] for leaves below `blocks`, [] for the others."""

    def norm(name: str, leaf: jax.Array) -> jax.Array:
        axes = tuple(range(1 if name.startswith("blocks/") else 0, leaf.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes))

    return {name: norm(name, leaf) for name, leaf in named_leaves(tree).items()}


def still_rows(gradient_VD: jax.Array, vocab_size: int) -> jax.Array:
    """The share, float32 [], of the first `vocab_size` rows that are zero. A row of an id that the batch does not hold is,
    where the embedding does not make the logits too."""
    moved_V = jnp.any(gradient_VD != 0.0, axis=-1)
    return (vocab_size - jnp.sum(moved_V, dtype=jnp.float32)) / vocab_size


def total_norm(norms: Mapping[str, jax.Array]) -> jax.Array:
    """The norm of a whole tree from its `leaf_norms`, float32 []."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(norm)) for norm in norms.values()), start=jnp.zeros((), jnp.float32)))


def first_nonfinite(telemetry: Telemetry) -> str:
    """The first parameter, in tree order, whose gradient is not finite, with its layer: `blocks/wq[2]`; empty if none."""
    for name, norms in telemetry.leaf_grad_norms.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(norms)))
        if bad.size:
            return f"{name}[{bad[0]}]" if name.startswith("blocks/") else name
    return ""


def _nonfinite(host: Telemetry) -> str:
    """What was not finite in a step: a parameter whose gradient it was, else the loss, else the update; empty if all was."""
    rest = "" if host.finite else "the update" if np.isfinite(host.loss) else "the loss"
    return first_nonfinite(host) or rest


def record_of(telemetry: Telemetry, *, labels_bytes: int, positions: int) -> dict[str, Any]:
    """A step as plain JSON values, every float32 exact.

    labels_bytes: bytes of text that the supervised labels stand for. positions: of the batch, B * T. bits_per_byte is that of
    the training batch: loss * labels / (ln 2 * bytes); None where the labels stand for no bytes. nonfinite: what was not finite
    where the step was skipped, a parameter by name (its gradient), `the loss` or `the update`. Only figures that an equal run
    repeats bit by bit belong here; times go to the event log.
    """
    host: Telemetry = jax.tree.map(np.asarray, telemetry)
    loss, labels, sites = float(host.loss), int(host.labels), _sites(host)
    return {
        "step": int(host.step),
        "loss": number(loss),
        "loss_spread": number(host.loss_spread),
        "bits_per_byte": number(loss * labels / (math.log(2) * labels_bytes)) if labels_bytes else None,
        "z_loss": number(host.z_loss),
        "labels": labels,
        "supervised": labels / positions,
        "bytes": labels_bytes,
        "grad_norm": number(host.grad_norm),
        "clipped": bool(host.clipped),
        "param_norm": number(host.param_norm),
        "update_norm": number(host.update_norm),
        "lr": number(host.lr),
        "loss_scale": number(host.loss_scale),
        "finite": bool(host.finite),
        "skipped": int(host.skipped),
        "nonfinite": _nonfinite(host),
        "grad_norms": {name: short(norm) for name, norm in host.leaf_grad_norms.items()},
        "param_norms": {name: short(norm) for name, norm in host.leaf_param_norms.items()},
        "update_norms": {name: short(norm) for name, norm in host.leaf_update_norms.items()},
        "embed_rows_still": number(host.embed_rows_still),
        "similarity": number(host.similarity),
        "activations": {
            **{f"{name}_rms": short(site.rms) for name, site in sites.items()},
            **{f"{name}_max": short(site.largest) for name, site in sites.items()},
            "logit_max": short(host.activations.logit_max),
            "entropy": short(host.activations.entropy),
        },
        "nonfinite_forward": {name: [int(count) for count in site.nonfinite] for name, site in sites.items()},
        "backward": {"residual_rms": short(host.backward.rms)},
        "nonfinite_backward": [int(count) for count in host.backward.nonfinite],
    }


def _sites(host: Telemetry) -> dict[str, Site]:
    stats = host.activations
    return {"residual": stats.residual, "attn": stats.attn, "mlp": stats.mlp}


def number(value: Any) -> Any:
    """A float, or a list of floats, as JSON holds it: NaN and the infinities become the strings "nan", "inf", "-inf"."""
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [number(v) for v in array]
    return float(array) if np.isfinite(array) else str(float(array))


def short(value: Any) -> Any:
    """`number` of a float32, or of a list of them, as the shortest decimal that is this float32 and no other."""
    array = np.asarray(value, np.float32)
    if array.ndim:
        return [short(v) for v in array]
    return float(str(array)) if np.isfinite(array) else number(array)
