"""What the config says of an untrained model is what such a model does, and a model that was drawn otherwise does not."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.model import forward, init_params
from jaxlm.model.untrained import first_loss_bounds, own_logit

CONFIGS = {
    "the default": {"d_model": 256, "n_layers": 4},
    "wide": {"d_model": 1024, "n_layers": 1},
    "wide and post-norm": {"d_model": 512, "n_layers": 4, "norm": "post"},
    "untied": {"d_model": 512, "n_layers": 2, "norm": "post", "tie_embeddings": False},
    "without norms": {"d_model": 1024, "n_layers": 1, "norm": "none", "init_std": 0.08},
    "without norms, not gated": {"d_model": 512, "n_layers": 2, "norm": "none", "ffn": "silu", "init_std": 0.1},
    "a large embedding": {"d_model": 1024, "n_layers": 1, "init_std": 0.05, "ffn": "gelu"},
    "a cap": {"d_model": 256, "n_layers": 1, "logit_softcap": 5.0},
    "no residual": {"d_model": 256, "n_layers": 2, "residual": False},
}


def losses(cfg, change=lambda params: params):
    """The mean losses where every label is another token, and where each is its own."""
    params = change(init_params(cfg, jax.random.key(0)))
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (4, 32), dtype=np.int32)
    logits = np.asarray(jax.jit(lambda p, t: forward(p, t, cfg))(params, tokens), np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=-1))
    own = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return float((log_sum - logits.mean(axis=-1)).mean()), float((log_sum - own).mean()), float(own.mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_an_untrained_model_keeps_to_the_bounds(name):
    cfg = ModelConfig(**{"n_heads": 4, "context_length": 32, "vocab_size": 2000, **CONFIGS[name]})
    fresh, same, own = losses(cfg)
    for loss, repeated in ((fresh, 0.0), (fresh, 1.0), (same, 1.0)):
        low, high = first_loss_bounds(cfg, repeated=repeated)
        assert low < loss < high, (loss, low, high)
    assert own < own_logit(cfg) + 0.1


def test_an_embedding_that_is_fifty_times_too_large_does_not():
    cfg = ModelConfig(d_model=256, n_layers=2, context_length=32, vocab_size=2000)
    large, _, _ = losses(cfg, lambda params: dataclasses.replace(params, embed=params.embed * 50))
    assert large > first_loss_bounds(cfg)[1]


def test_the_bounds_are_narrow_where_the_model_cannot_know_its_token():
    cfg = ModelConfig(d_model=256, n_layers=4, vocab_size=4096, tie_embeddings=False)
    low, high = first_loss_bounds(cfg)
    assert low == pytest.approx(math.log(4096) - 0.5)
    assert high == pytest.approx(math.log(4096) + 0.5 + 256 * 0.02**2 / 2, abs=1e-3)
