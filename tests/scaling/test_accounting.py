"""Parameters and FLOPs: models whose counts are public, the spec tree, brute force, and what XLA counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.data import Batch
from jaxlm.model import abstract_params, param_specs
from jaxlm.model.spec import count_params, named_leaves
from jaxlm.scaling.accounting import KINDS, flops_per_token, kind_of, mean_keys, non_embedding, parameters
from jaxlm.train.step import compute_gradients

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_ff=14336,
    context_length=8192,
    tie_embeddings=False,
)
GPT2_XL = ModelConfig(
    vocab_size=50257, vocab_multiple=1, d_model=1600, n_layers=48, n_heads=25, ffn="gelu", context_length=1024
)


def test_llama_3_8b_has_8_03_billion_parameters():
    counts = parameters(LLAMA3_8B)
    assert sum(counts.values()) == 8_030_261_248  # the count of its published weights
    assert counts["embedding"] == counts["head"] == 128256 * 4096
    assert non_embedding(LLAMA3_8B) == 8_030_261_248 - 2 * 128256 * 4096


def test_gpt2_xl_has_the_matrices_of_gpt2_xl():
    counts = parameters(GPT2_XL)
    assert counts["attention"] + counts["feed-forward"] == 12 * 48 * 1600**2  # Kaplan et al. 2020, table 1
    assert counts["embedding"] == 50257 * 1600
    assert counts["head"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qk_norm": True, "attention_bias": True, "n_kv_heads": 2},
        {"ffn": "silu", "norm": "none"},
        {"tie_embeddings": False},
    ],
)
def test_every_parameter_has_one_kind(fields):
    cfg = ModelConfig(vocab_size=1000, **fields)
    assert tuple(parameters(cfg)) == KINDS
    assert sum(parameters(cfg).values()) == count_params(param_specs(cfg))
    assert {kind_of(path) for path in named_leaves(param_specs(cfg))} <= set(KINDS)


def test_a_name_of_no_parameter_is_refused():
    with pytest.raises(ValueError, match="blocks/router"):
        kind_of("blocks/router")


@pytest.mark.parametrize(("length", "window"), [(1, 0), (7, 0), (8, 3), (8, 8), (8, 100), (9, 1)])
def test_the_mean_of_keys_is_that_of_the_mask(length, window):
    t, s = np.arange(length)[:, None], np.arange(length)[None, :]
    seen = (s <= t) & (t - s < (window or length))
    assert mean_keys(length, window) == pytest.approx(seen.sum() / length, rel=1e-12)


def test_a_token_takes_6_flops_a_weight_and_what_attention_adds():
    flops = flops_per_token(LLAMA3_8B)
    weights = non_embedding(LLAMA3_8B) + 128256 * 4096 - 65 * 4096  # norms multiply no matrix
    assert flops.model == 6 * weights + 3 * flops.scores
    assert flops.scores == 4 * 32 * 4096 * (8192 + 1) / 2
    assert flops.scores_full == 4 * 32 * 4096 * 8192
    assert flops.model == pytest.approx(6 * 8.03e9, rel=0.08)  # the usual rule
    assert flops_per_token(LLAMA3_8B, length=1024).scores == 4 * 32 * 4096 * 1025 / 2


def test_what_is_computed_again_is_counted_beside_the_models():
    plain, dots, block = (flops_per_token(LLAMA3_8B, remat) for remat in ("none", "dots", "block"))
    assert plain.model == dots.model == block.model
    assert plain.hardware == plain.model + plain.scores / 2
    assert dots.hardware - plain.hardware == plain.scores
    last_product = 2 * 32 * 4096 * 14336
    assert block.hardware - plain.hardware == plain.projections + plain.scores + plain.feed_forward - last_product
    assert flops_per_token(LLAMA3_8B, "offload").hardware == block.hardware


def counted_by_xla(cfg):
    """FLOPs of a token in loss and gradients. XLA counts the body of a loop once: hence unrolled layers, one row, one tile of
    attention, one block of logits."""
    ids, mask = (jax.ShapeDtypeStruct((1, cfg.model.context_length), dtype) for dtype in ("int32", "bool"))
    gradient = jax.jit(functools.partial(compute_gradients, cfg=cfg, loss_scale=jnp.float32(1)))
    params, key = abstract_params(cfg.model), jax.eval_shape(lambda: jax.random.key(0))
    found = gradient.lower(params, Batch(ids, ids, mask, ids, ids), key=key).compile().cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"] / cfg.model.context_length


@pytest.mark.parametrize(
    "fields", [{}, pytest.param({"n_kv_heads": 1, "ffn": "gelu", "tie_embeddings": False}, marks=pytest.mark.slow)]
)
def test_xla_counts_the_same_flops(config_on, fields):
    shape = {"d_model": 256, "n_layers": 2, "context_length": 64, "vocab_size": 512, "scan_layers": False, **fields}
    cfg = config_on("single", model=shape, batch_size=1)
    flops = flops_per_token(cfg.model)
    # Within a tile XLA computes the scores over all keys: seven products of that size, where two are forward.
    expected = flops.model + flops.attention_recompute + 3.5 * (flops.scores_full - flops.scores)
    assert counted_by_xla(cfg) == pytest.approx(expected, rel=0.03)
