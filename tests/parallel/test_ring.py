"""Ring attention on shards of a sequence against attention on the whole of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import MeshConfig
from jaxlm.parallel import make_mesh
from jaxlm.parallel.ring import ring_attention
from pallas_kernels import Attended, KeyRanges, attention, attention_float64, causal, packed

B, T, N, K, H = 2, 32, 4, 2, 8


def arrays(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(B, T, heads, H)), dtype) for heads in (N, K, K, N))


def documents():
    segments = np.ones((B, T), np.int32)
    segments[0, 9:] = 2
    segments[0, 25:] = 3
    segments[1, 13:] = 0  # padding
    positions = np.concatenate([[*range(9), *range(16), *range(7)], [*range(13), *range(19)]]).reshape(B, T).astype(np.int32)
    return jnp.asarray(segments), jnp.asarray(positions)


MASKS = {
    "causal": causal(B, T),
    "window": causal(B, T, window=5),
    "documents": packed(*documents()),
    "documents, window": packed(*documents(), window=4),
    "all keys": KeyRanges(jnp.zeros((B, T), jnp.int32), jnp.full((B, T), T, jnp.int32)),
    "few keys of other shards": KeyRanges(jnp.full((B, T), 14, jnp.int32), jnp.full((B, T), 18, jnp.int32)),
}


@functools.cache
def compiled(context, softcap):
    """What the ring finds and the gradients by q, k and v, over `context` shards of the sequence."""
    spec, rows = P(None, "context", None, None), P(None, "context")

    def out(q, k, v, start, end):
        def local(q, k, v, start, end):
            return ring_attention(q, k, v, KeyRanges(start, end), axis="context", softcap=softcap)

        out_specs = Attended(spec, *[P(None, "context", None)] * 3)
        return jax.shard_map(local, in_specs=(spec, spec, spec, rows, rows), out_specs=out_specs)(q, k, v, start, end)

    @jax.jit
    def both(q, k, v, start, end, d_out):
        def split(q, k, v):
            found = out(q, k, v, start, end)
            return found.out_BTNH, found

        _, backward, found = jax.vjp(split, q, k, v, has_aux=True)
        return found, *backward(d_out)

    return both


@jax.jit
def gradients(q, k, v, start, end, d_out):
    return jax.vjp(lambda q, k, v: attention(q, k, v, KeyRanges(start, end), softcap=9.0)[0], q, k, v)[1](d_out)


def over(context, q, k, v, ranges, d_out, softcap=9.0):
    mesh = make_mesh(MeshConfig(context=context))
    spec, rows = P(None, "context", None, None), P(None, "context")
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, spec) for x in (q, k, v)] + [jax.device_put(x, rows) for x in ranges]
        return compiled(context, softcap)(*put, jax.device_put(d_out, spec))


@pytest.mark.parametrize("name", MASKS)
def test_the_ring_gives_what_attention_to_all_keys_gives(name):
    q, k, v, d_out = arrays(0)
    found, *grads = over(4, q, k, v, MASKS[name], d_out)
    exact = attention_float64(q, k, v, *MASKS[name], softcap=9.0)
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    for found, wanted in zip(grads, gradients(q, k, v, *MASKS[name], d_out), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("context", [2, 8])
def test_the_number_of_shards_does_not_matter(context):
    q, k, v, d_out = arrays(1)
    (out, *_), *grads = over(context, q, k, v, MASKS["documents"], d_out)
    exact, *_ = attention_float64(q, k, v, *MASKS["documents"], softcap=9.0)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(grads, gradients(q, k, v, *MASKS["documents"], d_out), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


def test_queries_that_see_nothing_are_zero_and_give_no_gradient():
    q, k, v, d_out = arrays(2)
    nothing = KeyRanges(jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32))
    (out, lse, peak, mean), *grads = over(4, q, k, v, nothing, d_out)
    for array in (out, mean, *grads):
        assert not np.asarray(array).any()
    assert (np.asarray(lse) < -1e29).all()
    assert (np.asarray(peak) < -1e29).all()


def test_dtypes_are_those_of_the_operands():
    q, k, v, d_out = arrays(3, jnp.bfloat16)
    attended, *grads = over(4, q, k, v, MASKS["causal"], d_out)
    found = [attended.out_BTNH, *grads]
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4
    exact, *_ = attention_float64(*(np.asarray(x, np.float64) for x in (q, k, v)), *MASKS["causal"], softcap=9.0)
    np.testing.assert_allclose(np.asarray(found[0], np.float64), exact, atol=0.03)
