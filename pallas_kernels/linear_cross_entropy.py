"""Cross-entropy of the logits x . head without the logits: they are made a part at a time, read, and made again for gradients.

With gradients that is five products where stored logits take three, in memory that neither batch nor vocabulary enlarges.
`jaxlm.model` trains with logits of one block of positions instead, whose gradients are made at once. On Hopper the kernel is
for the log-sum-exp alone, gradients are XLA's there.

Axes: T position, D model, V vocabulary, Q block of positions.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Kernel, chosen_for_head
from pallas_kernels.reference import MASKED, matmul_precision

BLOCK = 1024  # positions whose logits XLA holds at a time


class _How(NamedTuple):
    """What is known when it is traced. by: as `chosen_for_head` says. only: whether there is to be nothing else on another
    device that the program is compiled for."""

    by: str
    only: bool
    vocab: int
    softcap: float


def linear_cross_entropy(
    x_TD: jax.Array,
    head_VD: jax.Array,
    labels_T: jax.Array,
    *,
    vocab: int | None = None,
    softcap: float = 0.0,
    kernel: Kernel = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of each label in nats and log-sum-exp of its logits, float32 [T], differentiable in x and head.

    x and head are finite and of one dtype, labels integers. vocab: how many of the V ids there are, the rest only pads; None is
    all. softcap: c * tanh(logits / c); 0 is off. A label that is no id makes its likelihood NaN. Gradients come in the dtype of
    x and head, from sums in float32. kernel: "auto", "reference" or "pallas", see `pallas_kernels.dispatch.chosen_for_head`.
    Raises ValueError for shapes and dtypes that do not fit, and where a kernel is asked for that there is none of.
    """
    (T, D), V = x_TD.shape, head_VD.shape[0]
    vocab = V if vocab is None else vocab
    if head_VD.shape != (V, D) or labels_T.shape != (T,) or not T:
        found = f"{list(x_TD.shape)}, {list(head_VD.shape)} and {list(labels_T.shape)}"
        raise ValueError(f"linear_cross_entropy: expected x [T, D], a head [V, D] and labels [T], T at least 1, found {found}")
    if x_TD.dtype != head_VD.dtype or not jnp.issubdtype(labels_T.dtype, jnp.integer):
        found = f"{x_TD.dtype}, {head_VD.dtype} and {labels_T.dtype}"
        raise ValueError(f"linear_cross_entropy: expected x and head of one dtype and integer labels, found {found}")
    if not 0 < vocab <= V:
        raise ValueError(f"linear_cross_entropy: expected a vocabulary of 1 to {V} ids, found {vocab}")
    if isinstance(softcap, jax.core.Tracer) or not 0.0 <= softcap < float("inf"):
        raise ValueError(f"linear_cross_entropy: expected a softcap that is known when traced, 0 or more, found {softcap}")
    how = _How(chosen_for_head(kernel, x_TD.dtype, D), kernel == "pallas", vocab, softcap)
    lse_T, label_T = _parts(how, x_TD, head_VD, labels_T.astype(jnp.int32))
    known_T = (labels_T >= 0) & (labels_T < vocab)
    return jnp.where(known_T, lse_T - label_T, jnp.nan), lse_T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _parts(how: _How, x_TD: jax.Array, head_VD: jax.Array, labels_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp of each position, and the logit of its label."""
    of_label_TD = head_VD[jnp.clip(labels_T, 0, how.vocab - 1)].astype(jnp.float32)
    label_T = _capped(jnp.sum(x_TD.astype(jnp.float32) * of_label_TD, axis=1), how.softcap)
    return _logsumexp(how, x_TD, head_VD), label_T


def _forward(how: _How, x_TD: jax.Array, head_VD: jax.Array, labels_T: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    results = _parts(how, x_TD, head_VD, labels_T)
    return results, (x_TD, head_VD, labels_T, results[0])


def _backward(how: _How, residuals: tuple, cotangents: tuple) -> tuple:
    x_TD, head_VD, labels_T, lse_T = residuals
    d_lse_T, d_label_T = cotangents
    d_x, d_head = _gradients(how, x_TD, head_VD, labels_T, lse_T, d_lse_T, d_label_T)
    return d_x.astype(x_TD.dtype), d_head.astype(head_VD.dtype), None


_parts.defvjp(_forward, _backward)


def _logsumexp(how: _How, x_TD: jax.Array, head_VD: jax.Array) -> jax.Array:
    def plain(x_TD: jax.Array, head_VD: jax.Array) -> jax.Array:
        def of_block(x_QD: jax.Array) -> jax.Array:
            return jax.nn.logsumexp(_logits(how, x_QD, head_VD), axis=1)

        return jax.lax.map(of_block, _cut(x_TD)).reshape(-1)[: len(x_TD)]

    def special(x_TD: jax.Array, head_VD: jax.Array) -> jax.Array:
        if how.by == "tpu":
            from pallas_kernels.tpu.linear_cross_entropy import logsumexp
        else:
            from pallas_kernels.hopper.logsumexp import logsumexp
        return logsumexp(x_TD, head_VD, how.vocab, softcap=how.softcap)

    if how.by == "xla":
        return plain(x_TD, head_VD)
    branches: dict[str, Any] = {"tpu" if how.by == "tpu" else "cuda": special, "default": None if how.only else plain}
    return jax.lax.platform_dependent(x_TD, head_VD, **branches)


def _gradients(
    how: _How,
    x_TD: jax.Array,
    head_VD: jax.Array,
    labels_T: jax.Array,
    lse_T: jax.Array,
    d_lse_T: jax.Array,
    d_label_T: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """By x and head, float32."""

    def plain(x_TD: jax.Array, head_VD: jax.Array, *of_positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = functools.partial(jnp.einsum, precision=matmul_precision(x_TD, head_VD), preferred_element_type=jnp.float32)

        def add(d_head_VD: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            x_QD, labels_Q, lse_Q, d_lse_Q, d_label_Q = block
            logits_QV = _logits(how, x_QD, head_VD)
            ids = jnp.arange(logits_QV.shape[1], dtype=jnp.int32)
            d_QV = jnp.exp(logits_QV - lse_Q[:, None]) * d_lse_Q[:, None]
            d_QV += jnp.where(ids[None, :] == labels_Q[:, None], d_label_Q[:, None], 0.0)
            if how.softcap:
                d_QV *= 1.0 - jnp.square(logits_QV / how.softcap)
            d_QV = jnp.where(ids[None, :] < how.vocab, d_QV, 0.0).astype(x_QD.dtype)
            return d_head_VD + product("QV,QD->VD", d_QV, x_QD), product("QV,VD->QD", d_QV, head_VD)

        blocks = tuple(_cut(x) for x in (x_TD, *of_positions))
        d_head_VD, d_x = jax.lax.scan(add, jnp.zeros(head_VD.shape, jnp.float32), blocks)
        return d_x.reshape(-1, x_TD.shape[1])[: len(x_TD)], d_head_VD

    def special(x_TD: jax.Array, head_VD: jax.Array, labels_T: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        from pallas_kernels.tpu.linear_cross_entropy import gradients

        return gradients(x_TD, head_VD, labels_T, how.vocab, *rest, softcap=how.softcap)

    given = x_TD, head_VD, labels_T, lse_T, d_lse_T, d_label_T
    if how.by != "tpu":
        return plain(*given)
    return jax.lax.platform_dependent(*given, tpu=special, default=None if how.only else plain)


def _cut(x: jax.Array) -> jax.Array:
    """Blocks of positions, as even as can be; zeros fill up the last."""
    blocks = math.ceil(len(x) / BLOCK)
    size = math.ceil(len(x) / blocks)
    return jnp.pad(x, [(0, blocks * size - len(x))] + [(0, 0)] * (x.ndim - 1)).reshape(blocks, size, *x.shape[1:])


def _logits(how: _How, x_QD: jax.Array, head_VD: jax.Array) -> jax.Array:
    precision = matmul_precision(x_QD, head_VD)
    logits_QV = jnp.einsum("QD,VD->QV", x_QD, head_VD, precision=precision, preferred_element_type=jnp.float32)
    return jnp.where(jnp.arange(len(head_VD))[None, :] < how.vocab, _capped(logits_QV, how.softcap), MASKED)


def _capped(logits: jax.Array, softcap: float) -> jax.Array:
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
