"""A tiny model whose gains and biases are drawn as well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.model import param_specs
from jaxlm.model.spec import is_spec

TINY = dict(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, context_length=24, vocab_size=37, vocab_multiple=8)


def drawn_params(cfg, seed=0):
    """Every leaf drawn: weights 1.5 times their initial width, gains about 1, biases about 0, the embedding about 1."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        middle, std = {"ones": (1.0, 0.3), "zeros": (0.0, 0.5)}.get(spec.init, (0.0, 1.5 * spec.std))
        std = 1.0 if spec.dims == "VD" else std
        return jnp.asarray(middle + std * rng.standard_normal(spec.shape), jnp.float32)

    return jax.tree.map(draw, param_specs(cfg), is_leaf=is_spec)


@pytest.fixture(scope="session")
def tiny():
    """A config of the tiny model with the given fields changed."""
    return lambda **fields: ModelConfig(**{**TINY, **fields})


@pytest.fixture(scope="session")
def drawn():
    """Parameters of a config, every leaf drawn."""
    return drawn_params
