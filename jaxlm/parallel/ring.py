"""Attention over a sequence that is cut into shards: keys and values travel round the ring of devices, queries stay.

Exact for every mask that `KeyRanges` can say. Every device attends to the shard of keys that it holds, passes the shard on,
and merges what it found by the log-sum-exp; after one round it has seen all keys. The backward pass goes round once more,
recomputes the weights from the log-sum-exp of the whole row, and the gradients of a shard travel with it until they are home,
so that no device ever holds more than two shards of keys. Source: Liu et al. 2023 (ring attention), algorithm 1.

Axes: B batch, T query of this shard, S key of this shard, N query head, K key/value head, H head width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import Attended, Kernel, KeyRanges, attention, attention_gradients


def ring_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    *,
    axis: str,
    softcap: float = 0.0,
    kernel: Kernel = "auto",
) -> Attended:
    """Attention of one device's queries to the keys of all devices of the mesh axis `axis`, inside `jax.shard_map`.

    ranges: of the device's own queries, over the keys of the whole sequence; shard i holds the keys i * S to (i + 1) * S.
    Returns what `attention` to all keys would, by the same `kernel`. Differentiable in q, k and v through the output alone.
    """
    out, *rest = _ring(q_BTNH, k_BSKH, v_BSKH, ranges.start_BT, ranges.end_BT, axis, softcap, kernel)
    return Attended(out, *jax.lax.stop_gradient(rest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _ring(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, axis: str, softcap: float, kernel: Kernel
) -> Attended:
    return _forward(q, k, v, start, end, axis, softcap, kernel)[0]


def _local(start: jax.Array, end: jax.Array, axis: str, passed: jax.Array | int, keys: int) -> KeyRanges:
    """The ranges over the shard that a device holds after `passed` passes: it began `passed` devices before."""
    first = (jax.lax.axis_index(axis) - passed) % jax.lax.axis_size(axis) * keys
    return KeyRanges(*(jnp.clip(bound - first, 0, keys).astype(jnp.int32) for bound in (start, end)))


def _pass_on(tree: tuple[jax.Array, ...], axis: str) -> tuple[jax.Array, ...]:
    devices = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(i, (i + 1) % devices) for i in range(devices)])


def _round(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, axis: str, softcap: float, kernel: Kernel
) -> Attended:
    """Once round the ring: attention to all keys, the output in float32."""

    def part(k: jax.Array, v: jax.Array, passed: jax.Array | int) -> Attended:
        found = attention(q, k, v, _local(start, end, axis, passed, k.shape[1]), softcap=softcap, kernel=kernel)
        return found._replace(out_BTNH=found.out_BTNH.astype(jnp.float32))

    def step(carry: tuple, passed: jax.Array | int) -> tuple[tuple, None]:
        held, found = carry
        return (_pass_on(held, axis), _merged(found, part(held[0], held[1], passed))), None

    # What is passed on is what is held: it travels while that is attended to. The last is not passed on.
    devices = jax.lax.axis_size(axis)
    carry: Any = (_pass_on((k, v), axis) if devices > 1 else (), part(k, v, 0))
    if devices > 2:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(1, devices - 1))
    held, found = carry
    return _merged(found, part(held[0], held[1], devices - 1)) if held else found


def _merged(a: Attended, b: Attended) -> Attended:
    """Attention to the keys of both. A row without keys has the log-sum-exp -1e30 and zeros: it adds nothing, and two of them
    stay one."""
    lse = jnp.logaddexp(a.lse_BTN, b.lse_BTN)
    of_a, of_b = jnp.exp(a.lse_BTN - lse), jnp.exp(b.lse_BTN - lse)
    out = a.out_BTNH * of_a[..., None] + b.out_BTNH * of_b[..., None]
    return Attended(out, lse, jnp.maximum(a.peak_BTN, b.peak_BTN), a.mean_BTN * of_a + b.mean_BTN * of_b)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, axis: str, softcap: float, kernel: Kernel
) -> tuple[Attended, tuple]:
    found = _round(q, k, v, start, end, axis, softcap, kernel)
    found = found._replace(out_BTNH=found.out_BTNH.astype(v.dtype))
    return found, (q, k, v, start, end, found.out_BTNH, found.lse_BTN)


def _backward(axis: str, softcap: float, kernel: Kernel, residuals: tuple, cotangents: Attended) -> tuple:
    q, k, v, start, end, out, lse = residuals
    d_out = cotangents.out_BTNH

    def part(k: jax.Array, v: jax.Array, passed: jax.Array | int) -> tuple[jax.Array, ...]:
        ranges = _local(start, end, axis, passed, k.shape[1])
        options: dict = {"softcap": softcap, "kernel": kernel}
        grads = attention_gradients(q, k, v, ranges, out, lse, d_out, jnp.zeros_like(lse), **options)
        return tuple(grad.astype(jnp.float32) for grad in grads)

    def add(held: tuple, sums: tuple, passed: jax.Array | int) -> tuple:
        """Gradients so far, those of keys and values having come along to where these are held."""
        d_q, *d_kv = sums
        d_k, d_v = _pass_on(tuple(d_kv), axis)  # while the part is computed
        more_q, more_k, more_v = part(held[0], held[1], passed)
        return d_q + more_q, d_k + more_k, d_v + more_v

    def step(carry: tuple, passed: jax.Array | int) -> tuple[tuple, None]:
        held, sums = carry
        return (_pass_on(held, axis), add(held, sums, passed)), None

    devices = jax.lax.axis_size(axis)
    carry: Any = (_pass_on((k, v), axis) if devices > 1 else (), part(k, v, 0))
    if devices > 2:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(1, devices - 1))
    held, sums = carry
    d_q, d_k, d_v = add(held, sums, devices - 1) if held else sums
    if held:
        d_k, d_v = _pass_on((d_k, d_v), axis)  # home
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_ring.defvjp(_forward, _backward)
