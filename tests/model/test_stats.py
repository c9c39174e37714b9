"""Statistics on the way: against NumPy, forward and backward, in scans, unrolled and remat; nothing else is changed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import BackwardStats, BlockStats, Mask, Site, hidden, new_sinks, similarity
from jaxlm.model.stats import of_attention, site, tap
from pallas_kernels import Attended


def test_a_site_is_measured_as_numpy_measures_it():
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    found = jax.jit(site)(x)
    np.testing.assert_allclose(found.rms, np.sqrt(np.square(x, dtype=np.float64).mean()), rtol=1e-6)
    assert (float(found.largest), float(found.nonfinite)) == (np.abs(x).max(), 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_that_are_not_finite_are_counted(dtype):
    x = np.ones((2, 5, 3), np.float32)
    x[0, 1, 2], x[1, 4, 0], x[1, 4, 1] = np.nan, np.inf, -np.inf
    assert float(site(jnp.asarray(x, dtype)).nonfinite) == 3


def test_numbers_whose_squares_overflow_are_finite():
    found = site(jnp.full((1, 2, 2), 1e30))
    assert (float(found.rms), float(found.nonfinite)) == (np.inf, 0)
    assert float(found.largest) == np.float32(1e30)


def test_queries_without_keys_are_no_part_of_the_entropy():
    lse, mean = jnp.asarray([[[2.0], [-1e30], [3.0]]]), jnp.asarray([[[1.5], [0.0], [2.0]]])
    peak, entropy = of_attention(Attended(None, lse, jnp.asarray([[[1.9], [-1e30], [2.5]]]), mean))
    assert (float(peak), float(entropy)) == (2.5, 0.75)
    assert np.isnan(of_attention(Attended(None, lse.at[0, 0].set(jnp.nan), lse, mean))[1])
    nobody = jnp.full_like(lse, -1e30)
    assert float(of_attention(Attended(None, nobody, nobody, 0 * mean))[1]) == 0


@pytest.mark.parametrize("counted", ["all", "some", "two", "one", "none"])
def test_similarity_is_the_mean_cosine_over_all_pairs(counted):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 4)).astype(np.float32) + 0.5
    among = {"all": range(10), "some": [0, 3, 4, 8], "two": [2, 9], "one": [5], "none": []}[counted]
    mask = np.isin(np.arange(10), among).reshape(2, 5)
    units = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float64)[mask]
    pairs = [units[i] @ units[j] for i in range(len(units)) for j in range(i)]
    np.testing.assert_allclose(jax.jit(similarity)(x, mask), np.mean(pairs) if pairs else 0.0, rtol=1e-5, atol=1e-7)


def test_similarity_is_one_of_positions_that_point_one_way_however_long_they_are():
    x = np.arange(1, 9, dtype=np.float32).reshape(2, 4, 1) * np.asarray([1.0, -2.0, 0.5], np.float32)
    x[0, 0] = 0.0  # no direction, and no pair
    mask = np.ones((2, 4), bool)
    np.testing.assert_allclose(similarity(x[:, 1:], mask[:, 1:]), 1.0, rtol=1e-6)
    assert np.isfinite(similarity(x, mask))
    assert not np.asarray(jax.grad(similarity)(x, mask)).any()


def test_micro_batches_are_merged_as_parts_of_one_batch():
    x = np.random.default_rng(1).standard_normal((4, 6, 3)).astype(np.float32)
    parts = [site(x[a::2]) for a in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *parts)
    one = jnp.asarray([[1.0], [3.0]])
    merged = BlockStats(stacked, stacked, stacked, one, one).over_micro_batches()
    np.testing.assert_allclose(merged.attn.rms[0], site(x).rms, rtol=1e-6)
    assert merged.attn.largest[0] == site(x).largest
    assert (float(merged.logit_max[0]), float(merged.entropy[0])) == (3.0, 2.0)


def gradients_by_inputs(params, ids, cfg, mask, weights):
    """Of sum(x * weights) by the input of every block, in float32, through an addition to it that is zero."""
    import jaxlm.model.transformer as transformer

    def loss(extra_LBTD):
        calls = iter(range(cfg.n_layers))
        real = transformer.named_input
        transformer.named_input = lambda x: real(x + extra_LBTD[next(calls)])
        try:
            unrolled = dataclasses.replace(cfg, scan_layers=False)
            return jnp.sum(hidden(params, ids, unrolled, mask, remat="nothing")[0] * weights)
        finally:
            transformer.named_input = real

    return jax.grad(loss)(jnp.zeros((cfg.n_layers, *ids.shape, cfg.d_model)))


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (False, "none"), (True, "block")])
def test_sinks_get_what_passes_and_change_nothing(scan, remat, tiny, drawn):
    cfg = tiny(n_layers=2, scan_layers=scan)
    params = drawn(cfg)
    ids = np.random.default_rng(2).integers(0, 50, (2, 12)).astype(np.int32)
    mask = Mask.causal(*ids.shape)
    weights = jax.random.normal(jax.random.key(5), (*ids.shape, cfg.d_model))

    def loss(params, sinks_L2):
        return jnp.sum(hidden(params, ids, cfg, mask, remat=remat, sinks_L2=sinks_L2)[0] * weights)

    value, (grads, sinks_L2) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, new_sinks(2))
    plain_value, plain = jax.jit(jax.value_and_grad(lambda params: loss(params, None)))(params)
    assert value == plain_value
    jax.tree.map(np.testing.assert_array_equal, grads, plain)
    passed = np.asarray(gradients_by_inputs(params, ids, cfg, mask, weights), np.float64)
    np.testing.assert_allclose(sinks_L2[:, 0], np.square(passed).sum((1, 2, 3)), rtol=1e-4)
    found = BackwardStats.from_sinks(sinks_L2, passed[0].size, jnp.float32(-0.5))
    np.testing.assert_allclose(found.rms, 0.5 * np.sqrt(np.square(passed).mean((1, 2, 3))), rtol=1e-4)


def test_a_sink_counts_what_is_not_finite():
    x, sink = jnp.ones((1, 2, 3)), jnp.zeros(2)
    weights = jnp.ones((1, 2, 3)).at[0, 0, :2].set(jnp.inf)
    assert float(jax.grad(lambda s: jnp.sum(tap(x, s) * weights))(sink)[1]) == 2


def test_statistics_are_no_part_of_the_computation():
    x = jnp.ones((1, 2, 3))
    found = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(site(x))))(x)
    assert isinstance(site(x), Site)
    assert not np.asarray(found).any()
