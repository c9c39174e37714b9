"""The state is laid out as the rules say, moments beside their parameters."""

import dataclasses

import jax
import numpy as np

from jaxlm.config import schema
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import make_mesh
from jaxlm.train import TrainState
from jaxlm.train.state import abstract_state, initial_state, put_batch

MODEL = schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=16, vocab_size=50, vocab_multiple=64)
SINGLE = schema.RunConfig(model=MODEL, train=schema.TrainConfig(steps=100, batch_size=8))
SHARDED = dataclasses.replace(SINGLE, mesh=schema.MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp"))


def test_a_sharded_state_has_the_values_of_the_plain_one_and_the_layout_of_the_rules():
    mesh = make_mesh(SHARDED.mesh)
    sharded = initial_state(SHARDED, mesh)
    plain = jax.jit(lambda: TrainState.create(SINGLE))()
    expected = named_leaves(abstract_state(SHARDED, mesh))
    for name, leaf in named_leaves(sharded).items():
        assert leaf.sharding == expected[name].sharding, name
        if name != "key":
            np.testing.assert_array_equal(leaf, named_leaves(plain)[name])
    wq = sharded.params.blocks.wq
    assert wq.addressable_shards[0].data.shape == (2, 8, 1, 8)
    assert {leaf.sharding.spec for name, leaf in named_leaves(sharded).items() if name.endswith("/wq")} == {wq.sharding.spec}
    assert sum(name.endswith("/wq") for name in named_leaves(sharded)) == 3


def test_another_seed_gives_other_parameters_and_the_same_seed_the_same():
    make = jax.jit(lambda cfg: TrainState.create(cfg).params.embed, static_argnums=0)
    seeded = dataclasses.replace(SINGLE, train=dataclasses.replace(SINGLE.train, seed=1))
    np.testing.assert_array_equal(make(SINGLE), make(SINGLE))
    assert (np.asarray(make(SINGLE)) != np.asarray(make(seeded))).all()


def test_a_batch_is_divided_among_the_devices_that_share_it():
    array = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
    (placed,) = put_batch((array,), SHARDED, make_mesh(SHARDED.mesh))
    assert placed.addressable_shards[0].data.shape == (2, 16)
    np.testing.assert_array_equal(placed, array)
