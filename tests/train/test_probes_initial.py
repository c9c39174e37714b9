"""The probes of a new run pass on weights as every config has them, and fail on weights that were drawn otherwise."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.parallel import make_mesh
from jaxlm.train.probes import Bench
from jaxlm.train.probes_initial import apart, initial_weights
from jaxlm.train.state import initial_state

SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "context_length": 16, "vocab_size": 50, "vocab_multiple": 64}
FSDP = schema.MeshConfig(data=2, fsdp=2, rules="fsdp")
CONFIGS = {
    "the default": ({}, {}),
    "everything": ({"tie_embeddings": False, "qk_norm": True, "attention_bias": True, "n_kv_heads": 1, "head_dim": 12}, {}),
    "post-norm": ({"norm": "post", "ffn": "gelu", "pos": "none"}, {}),
    "without norms": ({"norm": "none", "ffn": "silu", "residual": False, "init_std": 0.3}, {}),
    "tiny": ({"d_model": 4, "n_heads": 1, "d_ff": 3, "n_layers": 1}, {}),
    "fsdp": ({}, {"mesh": FSDP}),
    "tensor": ({"tie_embeddings": False}, {"mesh": schema.MeshConfig(data=2, tensor=2, rules="tp")}),
}


def probed(name="the default", change=lambda params: params, seed=0, probe=initial_weights):
    model, more = CONFIGS[name]
    train = schema.TrainConfig(batch_size=4, seed=seed)
    cfg = schema.RunConfig(model=schema.ModelConfig(**{**SIZES, **model}), train=train, **more)
    mesh, ids = make_mesh(cfg.mesh), np.zeros((4, 16), np.int32)
    with jax.set_mesh(mesh):
        params = change(initial_state(cfg, mesh).params)
        return probe(Bench(cfg, mesh, params, Batch(ids, ids, ids == 0, ids, ids)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_as_they_are_drawn_pass(name):
    for seed in range(3):
        assert probed(name, seed=seed).passed
        assert probed(name, seed=seed, probe=apart).passed


def times(factor, *names):
    return lambda params: dataclasses.replace(
        params, blocks=dataclasses.replace(params.blocks, **{name: getattr(params.blocks, name) * factor for name in names})
    )


def one_layer(params):
    wq = params.blocks.wq
    return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, wq=wq.at[1].multiply(1.5)))


FAULTS = {
    "attention writes without the depth": ("blocks/wo[0]", times(2.0, "wo")),
    "feed-forward writes without the depth": ("blocks/w_down[0]", times(2.0, "w_down")),
    "blocks thrice": ("blocks/wq[0]", times(3.0, "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")),
    "one layer": ("blocks/wq[1]", one_layer),
    "gains of 0": ("blocks/attn_norm[0]", times(0.0, "attn_norm")),
    "uniform in 0..2 std": ("blocks/wv[0]", lambda p: dataclasses.replace(p, blocks=p.blocks.replace(wv=abs(p.blocks.wv)))),
    "the embedding of another width": ("embed", lambda p: dataclasses.replace(p, embed=p.embed * 1.3)),
    "NaN": ("embed", lambda p: dataclasses.replace(p, embed=p.embed * jnp.nan)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_were_drawn_otherwise_are_seen_and_named(name):
    where, change = FAULTS[name]
    found = probed(change=change)
    assert not found.passed
    assert found.expected.startswith(f"{where} drawn")


def test_a_layer_that_starts_otherwise_is_seen_on_a_mesh():
    assert not probed("fsdp", times(2.0, "wo")).passed


def test_a_leaf_that_the_config_does_not_name_is_seen():
    found = probed(change=lambda params: dataclasses.replace(params, head=params.embed))
    assert not found.passed
    assert found.found == "head otherwise"


def of_blocks(**changes):
    return lambda params: dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **changes))


ALIKE = {
    "one key for all layers": (
        r"layers of blocks/\w+",
        lambda p: dataclasses.replace(p, blocks=jax.tree.map(lambda x: x[jnp.zeros(len(x), jnp.int32)], p.blocks)),
    ),
    "the last layer is the first": ("layers of blocks/wo", lambda p: of_blocks(wo=p.blocks.wo.at[-1].set(p.blocks.wo[0]))(p)),
    "one key for two matrices": ("blocks/w_gate and blocks/w_up", lambda p: of_blocks(w_gate=p.blocks.w_up)(p)),
    "the negative of another": ("blocks/w_gate and blocks/w_up", lambda p: of_blocks(w_gate=-p.blocks.w_up)(p)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_weights_that_were_drawn_with_one_key_are_seen_and_named(name):
    where, change = ALIKE[name]
    found = probed(change=change, probe=apart)
    assert not found.passed
    assert re.match(rf"{where} drawn apart", found.expected)
    assert probed(change=change).passed, "no moment tells"
