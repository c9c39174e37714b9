"""`attention` by the kernels for Hopper, interpreted: a head that is no width of theirs, and what no query sees."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels import attention, attention_float64, causal
from tests.pallas_kernels.operands import as_on_a_hopper


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
