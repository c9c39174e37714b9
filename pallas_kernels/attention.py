"""Attention over key ranges: what models call. The computation is chosen by `pallas_kernels.dispatch` when a program is traced.

Axes: B batch, T query, S key, N query head, K key/value head, H head width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import xla
from pallas_kernels.dispatch import Kernel, chosen, target
from pallas_kernels.hopper import HEAD_WIDTHS, tiling_for
from pallas_kernels.ranges import KeyRanges
from pallas_kernels.reference import Attended

PAGE = 128  # keys that the kernel for one query reads at a time, where a cache is whole pages


class _How(NamedTuple):
    """What is known when attention is traced. by: as `chosen` says. only: whether there is to be nothing else on another device
    that the program is compiled for. statistics: whether peak and mean are wanted."""

    by: str
    only: bool
    softcap: float
    statistics: bool


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    *,
    softcap: float = 0.0,
    kernel: Kernel = "auto",
    statistics: bool = True,
) -> Attended:
    """Scaled dot-product attention, softmax in float32; output and log-sum-exp are differentiable in q, k and v.

    Query head n reads key/value head n // (N / K). softcap: c * tanh(scores / c) before the mask; 0 is off. kernel: see
    `pallas_kernels.dispatch.chosen`. statistics: False leaves peak and mean out, as None, which saves Hopper's kernel two
    operations for every score. Keys and values that no query of the row sees are not read into a result, whatever they
    hold; nor are queries that see nothing.
    Differentiable once. Raises ValueError for shapes and dtypes that do not fit, for a softcap that is no number from 0 on, and
    where a kernel is asked for that there is none of. Source: Vaswani et al. 2017, section 3.2.1; grouped queries: Ainslie et
    al. 2023.
    """
    _checked(q_BTNH, k_BSKH, v_BSKH, ranges, softcap)
    how = _How(chosen(kernel, q_BTNH.dtype, q_BTNH.shape[3]), kernel == "pallas", softcap, statistics)
    ranges = ranges.within(k_BSKH.shape[1])
    if how.by == "cudnn":
        found = _by_cudnn(q_BTNH, k_BSKH, v_BSKH, ranges, softcap=softcap)
        return found if statistics else found._replace(peak_BTN=None, mean_BTN=None)
    out, lse, *rest = _attention(how, q_BTNH, k_BSKH, v_BSKH, *ranges)
    return Attended(out, lse, *jax.lax.stop_gradient(rest or (None, None)))


def _checked(q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, softcap: float) -> None:
    """Raises ValueError for what does not fit together."""
    shapes = [list(x.shape) for x in (q, k, v, *ranges)]
    dtypes = [str(x.dtype) for x in (q, k, v, *ranges)]
    if [len(shape) for shape in shapes] != [4, 4, 4, 2, 2]:
        raise ValueError(f"attention: expected q [B, T, N, H], k and v [B, S, K, H] and ranges [B, T], found {shapes}")
    (B, T, N, H), (_, S, K, _) = shapes[:2]
    if shapes[1:] != [[B, S, K, H]] * 2 + [[B, T]] * 2:
        expected = f"k and v {[B, S, K, H]} and ranges {[B, T]} with q {[B, T, N, H]}"
        raise ValueError(f"attention: expected {expected}, found {shapes[1:]}")
    if not min(B, T, S, N, K, H):
        raise ValueError(f"attention: expected at least one of everything, found q {shapes[0]}, k and v {shapes[1]}")
    if N % K:
        raise ValueError(f"attention: expected query heads in multiples of the {K} key/value heads, found {N}")
    if len({*dtypes[:3]}) > 1 or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"attention: expected q, k and v of one floating dtype, found {', '.join(dtypes[:3])}")
    if not all(jnp.issubdtype(x.dtype, jnp.integer) for x in ranges):
        raise ValueError(f"attention: expected integer ranges, found {', '.join(dtypes[3:])}")
    if isinstance(softcap, jax.core.Tracer) or not 0.0 <= softcap < float("inf"):
        raise ValueError(f"attention: expected a softcap that is known when traced, 0 (off) or more, found {softcap}")


def _by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, *, softcap: float) -> Attended:
    """Output and its gradients by cuDNN. The rest is XLA's, made where it is read: cuDNN rounds the log-sum-exp to 16 bits."""
    if softcap:
        raise ValueError(f"attention: expected no softcap, which cuDNN has not, found {softcap}; take auto or reference")
    _, lse, peak, mean = _attention(_How("xla", False, softcap, True), q, k, v, *ranges)
    mask_BTS, seen_BS = ranges.mask(k.shape[1]), ranges.seen(k.shape[1])
    some_BT = jnp.any(mask_BTS, axis=-1)
    q, k, v = _kept(q, some_BT), _kept(k, seen_BS), _kept(v, seen_BS)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], implementation="cudnn")
    out = _kept(out, some_BT)  # cuDNN's is the mean of all values there
    return Attended(out, lse, *jax.lax.stop_gradient((peak, mean)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, ...]:
    return _forward(how, q, k, v, start, end)[0]


def _forward(
    how: _How, q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple]:
    # Tied to the queries, the masks are made where they are read: else a scan over layers makes and keeps them all beforehand.
    q, start, end = jax.lax.optimization_barrier((q, start, end))
    results = _on("forward", how, q, k, v, KeyRanges(start, end), results=4 if how.statistics else 2)
    return results, (q, k, v, start, end, *results[:2])


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
    kernel: Kernel = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v, in their dtypes, from what `attention` returned and the gradients by both of its results.

    out and lse may be those of more keys than are given here: then the gradients are the part of these keys. Raises ValueError
    for cuDNN, which has none of parts.
    """
    _checked(q_BTNH, k_BSKH, v_BSKH, ranges, softcap)
    how = _How(chosen(kernel, q_BTNH.dtype, q_BTNH.shape[3]), kernel == "pallas", softcap, False)
    if how.by == "cudnn":
        raise ValueError("attention: cuDNN has no gradients of parts; take auto or reference")
    ranges = ranges.within(k_BSKH.shape[1])
    return _backward(how, (q_BTNH, k_BSKH, v_BSKH, *ranges, out_BTNH, lse_BTN), (d_out_BTNH, d_lse_BTN))[:3]


def _backward(how: _How, residuals: tuple, cotangents: tuple) -> tuple:
    q, k, v, start, end, out, lse = residuals
    d_out, d_lse = cotangents[:2]
    # d softmax: every weight gains against the mean gain of its row, which is out . d_out; lse adds its own softmax.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    delta = jnp.where((start < end)[:, :, None], delta, 0.0)  # of what sees nothing they may be anything
    grads = _on("backward", how, q, k, v, KeyRanges(start, end), lse, delta, d_out, results=3)
    return *grads, None, None


_attention.defvjp(_forward, _backward)


def _on(way: str, how: _How, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, *rest: Any, results: int) -> Any:
    """The first `results` of `forward` or `backward` by the computation that was chosen.

    A program that is compiled for another device than it was traced for has XLA's there, unless the kernel is asked for.
    """
    options = {"scale": q.shape[-1] ** -0.5, "softcap": how.softcap}

    def plain(*operands: Any) -> tuple:
        return getattr(xla, way)(*operands, **options)[:results]

    def special(*operands: Any) -> tuple:
        return (_on_tpu if how.by == "tpu" else _on_hopper)(way, *operands, results=results, **options)[:results]

    if how.by == "xla":
        return plain(q, k, v, ranges, *rest)
    branches: dict[str, Any] = {"tpu" if how.by == "tpu" else "cuda": special, "default": None if how.only else plain}
    return jax.lax.platform_dependent(q, k, v, ranges, *rest, **branches)


def _of_one_query(
    decode: Any, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, *, scale: float, softcap: float
) -> tuple[jax.Array, ...]:
    """`forward` of one query a row, by the kernel for that: the keys of a row are its pages, in order.

    The largest and the mean score are XLA's, which makes them where they are read; nothing reads them while a model generates.
    """
    B, pages = k.shape[0], k.shape[1] // PAGE
    blocks = jnp.arange(B * pages, dtype=jnp.int32).reshape(B, pages)
    of_pages = (x.reshape(B * pages, PAGE, *x.shape[2:]) for x in (k, v))
    out, lse = decode(q[:, 0], *of_pages, blocks, *(x[:, 0] for x in ranges), scale=scale, softcap=softcap)
    return out[:, None], lse[:, None], *xla.forward(q, k, v, ranges, scale=scale, softcap=softcap)[2:]


def _is_one_query(way: str, q: jax.Array, k: jax.Array) -> bool:
    return way == "forward" and q.shape[1] == 1 and k.shape[1] % PAGE == 0


def _on_tpu(
    way: str, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, *rest: Any, results: int, **options: Any
) -> Any:
    from pallas_kernels import tpu

    if _is_one_query(way, q, k):
        return _of_one_query(tpu.decode, q, k, v, ranges, **options)
    q, k, v, rest = _only_what_is_seen(way, q, k, v, ranges, rest)
    tiling = tpu.tiling_for(q.shape[3], q.dtype, max(q.shape[1], k.shape[1]), device=target().kind)
    return getattr(tpu, way)(q, k, v, ranges, *rest, tiling=tiling, **options)


def _on_hopper(
    way: str, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, *rest: Any, results: int, **options: Any
) -> Any:
    from pallas_kernels.hopper.backward import backward
    from pallas_kernels.hopper.decode import ROWS, decode
    from pallas_kernels.hopper.forward import forward

    if _is_one_query(way, q, k) and q.shape[-1] in HEAD_WIDTHS and q.shape[2] <= k.shape[2] * ROWS:
        return _of_one_query(decode, q, k, v, ranges, **options)
    q, k, v, rest = _only_what_is_seen(way, q, k, v, ranges, rest)
    width = q.shape[-1]
    filled = next(size for size in HEAD_WIDTHS if width <= size)
    wide = [jnp.pad(x, [(0, 0)] * 3 + [(0, filled - width)]) if x.ndim == 4 else x for x in (q, k, v, *rest)]
    kernel: Any = functools.partial(forward, statistics=results > 2) if way == "forward" else backward
    tiling = tiling_for(filled, q.dtype, max(q.shape[1], k.shape[1]), device=target().kind)
    found = kernel(*wide[:3], *ranges, *wide[3:], tiling=tiling, **options)
    return tuple(x[..., :width] if x.ndim == 4 else x for x in found)


def _only_what_is_seen(
    way: str, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges, rest: tuple
) -> tuple[jax.Array, jax.Array, jax.Array, tuple]:
    """Zeros in what a kernel multiplies by the weight 0, as 0 * NaN is NaN: values that no query of a row sees on
    the way forward; backward such keys, and queries that see nothing, with their gradients.

    Scores and their gradients of what is not seen are replaced in the kernels, so that the rest may hold anything.
    """
    seen_BS, some_BT = ranges.seen(k.shape[1]), ranges.start_BT < ranges.end_BT
    if way == "forward":
        return q, k, _kept(v, seen_BS), rest
    *rows, d_out = rest
    return _kept(q, some_BT), _kept(k, seen_BS), v, (*rows, _kept(d_out, some_BT))


def _kept(x: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.where(where[:, :, None, None], x, jnp.zeros_like(x))
