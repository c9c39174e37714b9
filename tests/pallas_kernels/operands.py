"""Operands of attention for the tests of kernels, and the errors that are allowed: FlashAttention's own rule.

A kernel may be at most twice as far from float64 as the unfused computation in the same dtype (three times with a cap), and a
rounding besides; and in no case further than 2^-7 of the largest number in bfloat16, 1e-5 in float32.
"""

import functools
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import KeyRanges, attention_float64, attention_reference, causal, packed, tpu
from pallas_kernels.dispatch import Target
from pallas_kernels.hopper import Blocks, Tiling


def operands(seed, *, B=2, T=40, S=56, N=4, K=2, H=16, dtype=jnp.float32, size=1.0):
    """q, k, v and the gradients by out and lse."""
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.standard_normal(shape) * size, dtype) for shape in shapes]
    return *arrays, jnp.asarray(rng.standard_normal(shapes[0][:3]), jnp.float32)


def some_ranges(kind, seed=0, *, B=2, T=40, S=56):
    """Ranges of one shape and dtype, whatever the kind: one program serves them all."""
    rng = np.random.default_rng(seed)
    if kind == "causal":
        return causal(B, T, S)
    if kind == "window":
        return causal(B, T, S, window=9)
    if kind == "packed":
        cuts = np.sort(rng.choice(np.arange(1, T), (3,), replace=False))
        segments = np.tile(1 + np.searchsorted(cuts, np.arange(T), side="right"), (B, 1))
        positions = np.stack([np.arange(T) - np.concatenate([[0], cuts])[row - 1] for row in segments])
        segments[:, T - 3 :] = 0
        return packed(jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32))
    if kind == "full":
        start, end = np.zeros((B, T)), np.full((B, T), S)
    elif kind == "empty":
        start, end = np.full((B, T), 7), np.full((B, T), 7)
    else:  # also reversed ones, and some beyond the keys
        start = rng.integers(-3, S + 2, (B, T))
        end = start + rng.integers(-S // 2, S, (B, T))
    return KeyRanges(jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32))


KINDS = ("causal", "window", "packed", "full", "empty", "random")


def exact_forward(q, k, v, ranges, softcap):
    return attention_float64(*(np.asarray(x, np.float64) for x in (q, k, v)), *(np.asarray(x) for x in ranges), softcap)


def exact_gradients(q, k, v, ranges, d_out, d_lse, softcap):
    """Gradients by q, k and v in float64, from matrices of all queries and keys; d_lse counts where something is seen."""
    q, k, v, d_out, d_lse = (np.asarray(x, np.float64) for x in (q, k, v, d_out, d_lse))
    (B, _, N, H), (S, K) = q.shape, k.shape[1:3]
    start, end = (np.asarray(x)[:, :, None] for x in ranges)
    seen = (np.arange(S) >= start) & (np.arange(S) < end)
    grads = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(B):
        for n in range(N):
            at, of = (b, slice(None), n), (b, slice(None), n // (N // K))
            scores = q[at] @ k[of].T / np.sqrt(H)
            slope = 1.0
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
                slope = 1.0 - np.square(scores / softcap)
            scores = np.where(seen[b], scores, -np.inf)
            weights = np.exp(scores - np.maximum(scores.max(1, keepdims=True), -1e30))
            total = weights.sum(1, keepdims=True)
            weights /= np.where(total == 0, 1, total)
            d_weights = d_out[at] @ v[of].T
            d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True) + d_lse[at][:, None])
            d_scores *= slope / np.sqrt(H)
            grads[0][at] += d_scores @ k[of]
            grads[1][of] += d_scores.T @ q[at]
            grads[2][of] += weights.T @ d_out[at]
    return grads


def unfused(q, k, v, ranges, softcap):
    """out, and the gradients by q, k and v of it and of lse, by autodiff of the unfused computation."""

    def function(q, k, v):
        out, lse = attention_reference(q, k, v, ranges, softcap=softcap)
        return out, jnp.where(lse > -1e29, lse, 0.0)

    return jax.vjp(function, q, k, v)


@functools.partial(jax.jit, static_argnames=("softcap",))
def unfused_gradients(q, k, v, d_out, d_lse, ranges, softcap):
    return unfused(q, k, v, ranges, softcap)[1]((d_out, d_lse))


def require_near(found, exact, plain, *, softcap):
    """FlashAttention's rule, see above. All of one shape; exact: float64."""
    found, plain, dtype = np.asarray(found, np.float64), np.asarray(plain, np.float64), jnp.asarray(found).dtype
    exact = np.asarray(exact, np.float64)
    assert found.shape == exact.shape
    assert np.isfinite(found).all()
    error, unfused_error = np.abs(found - exact).max(), np.abs(plain - exact).max()
    rounding = np.abs(exact + 0.3 - 0.3 - exact).max()
    absolute = {"float32": 1e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype.name] * max(1.0, np.abs(exact).max())
    assert error <= absolute
    if dtype != jnp.float32:
        assert error <= (3 if softcap else 2) * unfused_error + 2 * rounding + 1e-6


H200 = Target("gpu", "NVIDIA H200")
TPUS = [Target("tpu", kind) for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")]


def made_for(on):
    """Programs that are made in this context are for such a device, which need not be here."""
    device = jax.sharding.AbstractDevice(
        device_kind=on.kind, num_cores=1 if on.platform == "tpu" else None, platform=on.platform
    )
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def as_on_a_tpu(monkeypatch):
    """`attention` chooses the kernel for TPUs, which is interpreted here, in tiles of 16."""
    monkeypatch.setattr(sys.modules["pallas_kernels.attention"], "chosen", lambda *args, **options: "tpu")
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, default, tpu=None, cpu=None: (tpu or cpu or default)(*xs))
    for way in ("forward", "backward", "decode"):
        monkeypatch.setattr(tpu, way, functools.partial(getattr(tpu, way), interpret=True))
    monkeypatch.setattr(tpu, "tiling_for", lambda *args, **options: tpu.Tiling(16, 16, 16, 16))


def as_on_a_hopper(monkeypatch):
    """`attention` chooses the kernels for Hopper, which are interpreted here, in tiles of 64."""
    module = sys.modules["pallas_kernels.attention"]
    monkeypatch.setattr(module, "chosen", lambda *args, **options: "hopper")
    monkeypatch.setattr(module, "tiling_for", lambda *args, **options: Tiling(*[Blocks(64, 64, 2)] * 3))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, default, cuda=None, cpu=None: (cuda or cpu or default)(*xs))
    for name in ("forward", "backward", "decode"):
        kernel = importlib.import_module(f"pallas_kernels.hopper.{name}")
        monkeypatch.setattr(kernel, name, functools.partial(getattr(kernel, name), interpret=True))
