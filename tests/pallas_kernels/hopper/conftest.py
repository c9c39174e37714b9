"""Inputs, masks, and oracles of the Hopper kernels, which run here in Pallas's interpreter of GPU kernels, on threads.

Every warpgroup takes a thread of XLA's, of which there are as many as devices or cores: on two cores it takes the eight devices
of tests/conftest.py. Interpreted kernels can hang: see `tests/pallas_kernels/conftest.py`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KeyRanges, attention_reference, causal, packed
from tests.pallas_kernels.operands import exact_gradients


@pytest.fixture(autouse=True)
def _deadlock_ends_the_process(deadlock_ends_the_process):
    pass


def _compiled(function, **options):
    run = jax.jit(functools.partial(function, **options))
    # The interpreter runs further programs from within this one: one that is waiting for a thread meanwhile may hold all up.
    return lambda *arguments: jax.block_until_ready(run(*arguments))


@pytest.fixture(scope="session")
def compiled():
    """compiled(function, **options): compiled once for equal arguments, and waited for."""
    return functools.lru_cache(_compiled)


class Inputs(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array
    d_lse: jax.Array


def _inputs(B, T, S, N, K, H, dtype, seed=0, size=1.0):
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    values = (size * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False))
    return Inputs(*values, jax.random.normal(keys[4], (B, T, N)))


@pytest.fixture(scope="session")
def inputs():
    """inputs(B, T, S, N, K, H, dtype, seed=0, size=1.0): standard normal times size."""
    return functools.lru_cache(_inputs)


def _documents(T, lengths):
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    filled = T - len(segments)
    return (jnp.asarray(np.pad(x, (0, filled)), jnp.int32)[None] for x in (segments, positions))


def _masks(B, T, S, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.integers(-40, S, (B, T))
    some = KeyRanges(*(jnp.asarray(x, jnp.int32) for x in (start, start + rng.integers(-60, S, (B, T)))))
    # Two warpgroups of a block far apart, one that sees nothing, and ranges past the last key.
    t = np.arange(T)[None] + np.zeros((B, 1), int)
    apart = np.where(t // 64 % 2, S - 30, 0)
    last = np.where(t // 64 == 2, 0, np.where(t // 64 % 2, S + 9, 40))
    documents = packed(*_documents(T, [T // 3, T // 2]))
    return {
        "causal": causal(B, T, S),
        "window": causal(B, T, S, window=70),
        "packed": KeyRanges(*(jnp.tile(x, (B, 1)) for x in documents)),
        "everything": KeyRanges(jnp.zeros((B, T), jnp.int32), jnp.full((B, T), S, jnp.int32)),
        "nothing": KeyRanges(jnp.full((B, T), 5, jnp.int32), jnp.full((B, T), 5, jnp.int32)),
        "apart": KeyRanges(jnp.asarray(apart, jnp.int32), jnp.asarray(last, jnp.int32)),
        "random": some,
    }


@pytest.fixture(scope="session")
def masks():
    """masks(B, T, S): ranges by name."""
    return functools.lru_cache(_masks)


def _gradients_float64(x, ranges, softcap=0.0):
    return exact_gradients(x.q, x.k, x.v, ranges, x.d_out, x.d_lse, softcap)


@pytest.fixture(scope="session")
def gradients_float64():
    """gradients_float64(inputs, ranges, softcap): by q, k and v, through both the output and its log-sum-exp."""
    return _gradients_float64


@functools.partial(jax.jit, static_argnums=2)
def _plain(x, ranges, softcap=0.0):
    def both(q, k, v):
        out, lse = attention_reference(q, k, v, ranges, softcap=softcap)
        return out, jnp.where(lse > -1e29, lse, 0.0)

    (out, _), pullback = jax.vjp(both, x.q, x.k, x.v)
    return out, pullback((x.d_out, x.d_lse))


@pytest.fixture(scope="session")
def plain():
    """plain(inputs, ranges, softcap): output and gradients as unfused attention has them in the dtype of the inputs."""
    return _plain


def _as_near_as(ours, exact, theirs, softcap=0.0):
    error, allowed = (np.abs(np.asarray(x, np.float64) - exact).max() for x in (ours, theirs))
    size = np.abs(exact).max()
    assert error <= (3 if softcap else 2) * allowed, (error, allowed, size)
    assert error <= 2**-7 * size, (error, size)


@pytest.fixture(scope="session")
def as_near_as():
    """as_near_as(ours, exact, theirs, softcap): FlashAttention's rule, the error is at most twice that of unfused attention in
    the same dtype, and, since that one's varies with the compiler, at most 2**-7 of the largest value."""
    return _as_near_as
