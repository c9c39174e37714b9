"""`attention` by the kernels for Hopper, interpreted: a head that is no width of theirs, and what no query sees."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels import attention, attention_float64, causal
from pallas_kernels.dispatch import Target
from pallas_kernels.hopper import Blocks, Tiling, warpgroup
from tests.pallas_kernels.operands import H200, as_on_a_hopper, made_for


@pytest.fixture
def on_a_hopper(monkeypatch):
    as_on_a_hopper(monkeypatch)


@pytest.mark.usefixtures("on_a_hopper")
def test_a_head_of_another_width_is_filled_up_and_what_no_query_sees_leaks_into_no_result(
    inputs, plain, gradients_float64, as_near_as
):
    x = inputs(1, 70, 90, 2, 1, 40, jnp.bfloat16)
    ranges = causal(1, 70, 80)
    ranges = ranges._replace(end_BT=ranges.end_BT.at[:, 3].set(0))
    bad = x._replace(k=x.k.at[:, 80:].set(jnp.inf), v=x.v.at[:, 80:].set(jnp.nan))
    bad = bad._replace(**{name: getattr(x, name).at[:, 3].set(jnp.nan) for name in ("q", "d_out", "d_lse")})

    @jax.jit
    def both(q, k, v, d_out, d_lse):
        found, pull = jax.vjp(lambda *operands: attention(*operands, ranges), q, k, v)
        zeros = jnp.zeros_like(d_lse)
        return found, pull(type(found)(d_out, d_lse, zeros, zeros))

    found, gradients = jax.block_until_ready(both(*bad))
    exact = attention_float64(x.q, x.k, x.v, *(np.asarray(a) for a in ranges))
    out, theirs = plain(x, ranges)
    as_near_as(found.out_BTNH, exact.out_BTNH, out)
    for ours, wanted in zip(found[1:], exact[1:], strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    for ours, wanted, unfused in zip(gradients, gradients_float64(x, ranges), theirs, strict=True):
        as_near_as(ours, wanted, unfused)


@pytest.mark.usefixtures("on_a_hopper")
def test_without_statistics_the_rest_is_the_same(inputs):
    x = inputs(1, 70, 90, 2, 1, 40, jnp.bfloat16)
    ranges = causal(1, 70, 80)

    def both(q, k, v, d_out, statistics):
        found, pull = jax.vjp(lambda *operands: attention(*operands, ranges, statistics=statistics)[:2], q, k, v)
        return [*found, *pull((d_out, x.d_lse))]

    def run(statistics):
        return jax.block_until_ready(jax.jit(both, static_argnums=4)(*x[:4], statistics))

    for ours, theirs in zip(*map(run, (True, False)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("on_a_hopper")
def test_one_query_over_a_cache_goes_by_the_kernel_for_that(inputs, plain, as_near_as, monkeypatch):
    x = inputs(1, 1, 256, 4, 2, 64, jnp.bfloat16)
    ranges = causal(1, 1, 200)
    monkeypatch.setattr(importlib.import_module("pallas_kernels.hopper.forward"), "forward", None)  # not called
    found = jax.block_until_ready(jax.jit(attention)(x.q, x.k, x.v.at[:, 200:].set(jnp.nan), ranges))
    exact = attention_float64(x.q, x.k, x.v, *(np.asarray(a) for a in ranges))
    as_near_as(found.out_BTNH, exact.out_BTNH, plain(x, ranges)[0])
    np.testing.assert_allclose(found.lse_BTN, exact.lse_BTN, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("on_a_hopper")
def test_tiles_are_those_for_the_width_the_length_and_the_device(inputs, monkeypatch):
    asked = []

    def tiling_for(width, dtype, length, *, device):
        asked.append((width, jnp.dtype(dtype).name, length, device))
        return Tiling(*[Blocks(64, 64, 2)] * 3)

    module = importlib.import_module("pallas_kernels.attention")
    monkeypatch.setattr(module, "tiling_for", tiling_for)
    monkeypatch.setattr(module, "target", lambda: Target("gpu", "NVIDIA H200"))
    x = inputs(1, 70, 90, 2, 1, 40, jnp.bfloat16)
    jax.eval_shape(jax.grad(lambda q: attention(q, x.k, x.v, causal(1, 70, 90)).out_BTNH.astype("float32").sum()), x.q)
    assert asked == [(64, "bfloat16", 90, "NVIDIA H200")] * 2


def test_more_query_heads_than_the_kernel_for_one_query_takes_go_by_the_other():
    with made_for(H200):
        q, k = (jax.ShapeDtypeStruct((1, n, heads, 64), jnp.bfloat16) for n, heads in ((1, 128), (128, 1)))
        traced = jax.jit(lambda q, k, v: attention(q, k, v, causal(1, 1, 128)).out_BTNH).trace(q, k, k)
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_warpgroups_ask_for_no_more_registers_than_their_block_was_started_with():
    for computing in (2, 3):
        asked = computing * warpgroup.compute_registers(computing) + warpgroup.MEMORY_REGISTERS
        assert asked <= warpgroup.registers(computing + 1) * (computing + 1)
        assert warpgroup.compute_registers(computing) > warpgroup.registers(computing + 1)
    assert (warpgroup.registers(3), warpgroup.compute_registers(2)) == (168, 240)
