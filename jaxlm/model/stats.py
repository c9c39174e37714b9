"""Statistics of a block for the telemetry: read on the way, never part of the computation.

Forward statistics leave a block beside its output. Backward ones leave through `tap`: an identity whose second argument, the
sink, enters nothing and gets the statistics of the passing gradient as its own gradient.

Axes: B batch, T position, D model, N query head, L layer, A micro-batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from pallas_kernels import Attended


@struct.dataclass
class Site:
    """An activation. rms: root mean square. largest: absolute maximum. nonfinite: numbers that are infinite or NaN.

    float32; scalars inside a block, [L] after the scan. A NaN makes rms and largest NaN.
    """

    rms: jax.Array
    largest: jax.Array
    nonfinite: jax.Array


@struct.dataclass
class BlockStats:
    """residual: the input of a block. attn, mlp: what attention and the feed-forward give. logit_max: the largest score of
    attention, before the softmax. entropy: of its weights in nats, the mean over queries that see a key. float32.
    """

    residual: Site
    attn: Site
    mlp: Site
    logit_max: jax.Array
    entropy: jax.Array

    def over_micro_batches(self) -> BlockStats:
        """Of a whole batch, [L], from those of equal micro-batches, [A, L]."""

        def merged(site: Site) -> Site:
            rms = jnp.sqrt(jnp.mean(jnp.square(site.rms), axis=0))
            return Site(rms, jnp.max(site.largest, axis=0), jnp.sum(site.nonfinite, axis=0))

        return BlockStats(
            residual=merged(self.residual),
            attn=merged(self.attn),
            mlp=merged(self.mlp),
            logit_max=jnp.max(self.logit_max, axis=0),
            entropy=jnp.mean(self.entropy, axis=0),
        )


@struct.dataclass
class BackwardStats:
    """Of the gradient by the input of a block. rms, nonfinite: as of a `Site`; float32 [L]."""

    rms: jax.Array
    nonfinite: jax.Array

    @classmethod
    def from_sinks(cls, sinks_L2: jax.Array, numbers: int, factor: jax.Array) -> BackwardStats:
        """From the gradients of the sinks. numbers: of a batch's gradient by the residual stream, B * T * D. factor: what
        that gradient is multiplied with to be the one by the mean loss."""
        return cls(jnp.sqrt(sinks_L2[:, 0] / float(numbers)) * jnp.abs(factor), sinks_L2[:, 1])


def site(x_BTD: jax.Array) -> Site:
    """The statistics of an activation."""
    x_BTD = jax.lax.stop_gradient(x_BTD)
    squares, largest = _squares(x_BTD), jnp.max(jnp.abs(x_BTD)).astype(jnp.float32)
    return Site(jnp.sqrt(squares / float(x_BTD.size)), largest, _nonfinite(x_BTD, squares))


def of_attention(attended: Attended) -> tuple[jax.Array, jax.Array]:
    """The largest score and the mean entropy of the queries that see a key; -1e30 and 0 where none does."""
    sees_BTN = ~(attended.lse_BTN < -1e29)  # a NaN is no query without keys
    entropy_BTN = jnp.where(sees_BTN, attended.lse_BTN - attended.mean_BTN, 0.0)
    count = jnp.maximum(jnp.sum(sees_BTN, dtype=jnp.float32), 1.0)
    return jax.lax.stop_gradient((jnp.max(attended.peak_BTN), jnp.sum(entropy_BTN) / count))


def similarity(x_BTD: jax.Array, counted_BT: jax.Array) -> jax.Array:
    """The mean cosine of the angle between two different positions, float32 []: 1 where all point one way, 0 for random ones.

    x_BTD: activations, of any float dtype. counted_BT: bool, which positions enter; fewer than two give 0. Of n unit vectors
    the squared length of the sum is n plus the sum over pairs, so that no pair is looked at. Source: Ethayarajh 2019
    (anisotropy of representations).
    """
    x_BTD = jax.lax.stop_gradient(x_BTD).astype(jnp.float32)
    squares_BT = jnp.sum(jnp.square(x_BTD), axis=-1)
    weights_BT = jnp.where(counted_BT & (squares_BT > 0.0), jax.lax.rsqrt(squares_BT), 0.0)
    n = jnp.sum(counted_BT, dtype=jnp.float32)
    sum_D = jnp.sum(x_BTD * weights_BT[..., None], axis=(0, 1))
    return (jnp.sum(jnp.square(sum_D)) - n) / jnp.maximum(n * (n - 1.0), 1.0)


def new_sinks(n_layers: int) -> jax.Array:
    """What `tap` takes, for all layers: zeros, float32 [L, 2]."""
    return jnp.zeros((n_layers, 2), jnp.float32)


@jax.custom_vjp
def tap(x_BTD: jax.Array, sink_2: jax.Array) -> jax.Array:
    """`x_BTD`. The gradient of `sink_2` is (sum of squares, numbers that are not finite) of the gradient by `x_BTD`."""
    return x_BTD


def _tap_forward(x_BTD: jax.Array, sink_2: jax.Array) -> tuple[jax.Array, None]:
    return x_BTD, None


def _tap_backward(_: None, d_x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    squares = _squares(d_x_BTD)
    return d_x_BTD, jnp.stack([squares, _nonfinite(d_x_BTD, squares)])


tap.defvjp(_tap_forward, _tap_backward)


def _squares(x_BTD: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x_BTD.astype(jnp.float32)))


def _nonfinite(x_BTD: jax.Array, squares: jax.Array) -> jax.Array:
    """Numbers that are not finite, float32; looked for only where the sum of squares says that there may be any."""

    def count(x_BTD: jax.Array) -> jax.Array:
        return jnp.sum(~jnp.isfinite(x_BTD), dtype=jnp.float32)

    return jax.lax.cond(jnp.isfinite(squares), lambda _: jnp.zeros((), jnp.float32), count, x_BTD)
