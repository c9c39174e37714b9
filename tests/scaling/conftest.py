"""Configs of every mesh, small but with activations that matter, and the compiled step that they are compared with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from jaxlm.config.schema import MeshConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.data import Batch
from jaxlm.parallel import make_mesh
from jaxlm.train.state import abstract_state, rules
from jaxlm.train.step import train_step

MESHES = {
    "single": MeshConfig(),
    "dp": MeshConfig(data=8, rules="dp"),
    "fsdp": MeshConfig(data=2, fsdp=4, rules="fsdp"),
    "tp": MeshConfig(data=2, tensor=4, rules="tp"),
    "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp"),
    "context": MeshConfig(data=2, context=4, rules="dp"),
}


def make(mesh="single", *, model=None, **train):
    """A config on one of `MESHES`."""
    shape = {"d_model": 64, "n_layers": 4, "n_heads": 4, "context_length": 128, "vocab_size": 512, **(model or {})}
    return RunConfig(
        model=ModelConfig(**shape),
        train=TrainConfig(**{"steps": 10, "batch_size": 32, **train}),
        optim=OptimConfig(warmup_steps=1),
        mesh=MESHES[mesh],
    )


@functools.cache
def compile_step(cfg):
    """The compiled training step of a config, on as many CPU devices as its mesh has; no array is made."""
    mesh = make_mesh(cfg.mesh)
    shape = (cfg.train.batch_size, cfg.model.context_length)
    with jax.set_mesh(mesh):
        layout = NamedSharding(mesh, rules(cfg).activation("BT"))
        ids, mask = (jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for dtype in (jnp.int32, jnp.bool_))
        return train_step.lower(abstract_state(cfg, mesh), Batch(ids, ids, mask, ids, ids)).compile()


@pytest.fixture
def config_on():
    """`make`: a config on a mesh by name."""
    return make


@pytest.fixture
def compiled():
    """`compile_step`."""
    return compile_step
