"""Which dtype each part of the computation has, and dynamic loss scaling for float16.

Softmax, norms and the loss are float32 under every policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct


@dataclass(frozen=True)
class Policy:
    """dtypes by role. compute: activations and matrix products; logits: what the loss reads. loss_scaling: of float16.

    Stored weights, optimizer state and the sums of gradients over micro-batches are float32 under every policy; and where
    activations are float32, so are matrix products, on every device (`pallas_kernels.matmul_precision`).
    """

    compute: str = "float32"
    logits: str = "float32"
    loss_scaling: bool = True

    @property
    def scales_loss(self) -> bool:
        """True where gradients may underflow and the loss is scaled against that."""
        return self.compute == "float16" and self.loss_scaling


POLICIES: dict[str, Policy] = {
    "float32": Policy(),
    "bfloat16": Policy(compute="bfloat16"),
    "float16": Policy(compute="float16"),
}


@struct.dataclass
class LossScale:
    """State of dynamic loss scaling. scale: float32 []; good_steps: int32 [], finite steps since the last change."""

    scale: jax.Array
    good_steps: jax.Array

    PERIOD = 2000  # finite steps before the scale doubles (Micikevicius et al. 2018, section 3.2)
    FLOOR = 1.0  # a scale below this would shrink gradients further instead of saving them

    @classmethod
    def create(cls, policy: Policy) -> LossScale:
        """2**15 for float16; 1, which never changes, otherwise."""
        scale = 2.0**15 if policy.scales_loss else 1.0
        return cls(scale=jnp.asarray(scale, jnp.float32), good_steps=jnp.zeros((), jnp.int32))

    def next(self, finite: jax.Array, policy: Policy) -> LossScale:
        """Halve after a non-finite gradient, double after `PERIOD` finite ones."""
        if not policy.scales_loss:
            return self
        good = jnp.where(finite, self.good_steps + 1, 0)
        grow = good >= self.PERIOD
        scale = jnp.where(finite, jnp.where(grow, self.scale * 2.0, self.scale), jnp.maximum(self.scale / 2.0, self.FLOOR))
        return LossScale(scale=scale, good_steps=jnp.where(grow, 0, good))
