"""A step computed twice: equal bits pass, one flipped bit in one of the two is named."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.parallel import make_mesh
from jaxlm.train import recompute, train_step
from jaxlm.train.recompute import step_twice
from jaxlm.train.state import initial_state, put_batch
from jaxlm.watch.recompiles import no_recompilation

CFG = schema.RunConfig(
    model=schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=16, vocab_size=50, vocab_multiple=64),
    train=schema.TrainConfig(batch_size=4),
    mesh=schema.MeshConfig(data=2, fsdp=2, rules="fsdp"),
)


def flipped(array, bit, on):
    """`array` with one bit of one element changed in the buffer of one device."""
    buffers = []
    for shard in array.addressable_shards:
        part = np.array(shard.data)
        if shard.device.id == on:
            part.reshape(-1).view(np.uint32)[1] ^= np.uint32(1 << bit)
        buffers.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, buffers)


@pytest.fixture(scope="module")
def mesh():
    with jax.set_mesh(mesh := make_mesh(CFG.mesh)):
        yield mesh


@pytest.fixture
def state(mesh):
    return initial_state(CFG, mesh)


@pytest.fixture(scope="module")
def batch(mesh):
    ids = np.random.default_rng(0).integers(0, 50, (4, 17), dtype=np.int32)
    ones = np.ones((4, 16), np.int32)
    made = Batch(ids[:, :-1], ids[:, 1:], ones.astype(bool), ones, np.tile(np.arange(16, dtype=np.int32), (4, 1)))
    return put_batch(made, CFG, mesh)


def test_a_step_computed_twice_is_the_step_and_compiles_nothing_when_warm(state, mesh, batch):
    expected, telemetry = train_step(initial_state(CFG, mesh), batch)
    once, reported = step_twice(state, batch, artifact="run", deterministic=True)
    jax.tree.map(np.testing.assert_array_equal, once.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, reported, telemetry)
    assert int(once.step) == 1
    assert state.params.embed.is_deleted()  # the state is donated, as it is by the step
    with no_recompilation():
        twice, _ = step_twice(once, batch, artifact="run", deterministic=True)
    with no_recompilation():
        train_step(twice, batch)


@pytest.mark.parametrize("which", [1, 2])
def test_a_mantissa_bit_that_flips_in_one_of_the_two_is_named(state, batch, monkeypatch, which):
    computed = []

    def faulty(state, batch):
        state, telemetry = train_step(state, batch)
        computed.append(None)
        if len(computed) == which:
            params = dataclasses.replace(state.params, final_norm=flipped(state.params.final_norm, 3, on=2))
            state = dataclasses.replace(state, params=params)
        return state, telemetry

    monkeypatch.setattr(recompute, "train_step", faulty)
    with pytest.raises(ContractError, match=r"state/params/final_norm: \w{16} then \w{16} on cpu:2\. Silent data") as caught:
        step_twice(state, batch, artifact="run, step 7", deterministic=True)
    assert (caught.value.contract, caught.value.artifact) == ("recompute", "run, step 7")
    assert len(computed) == 2


def test_a_bit_that_flips_in_the_telemetry_alone_is_named_and_a_device_of_any_order_is_told_apart(state, batch, monkeypatch):
    computed = []

    def faulty(state, batch):
        state, telemetry = train_step(state, batch)
        computed.append(None)
        if len(computed) == 2:
            telemetry = telemetry.replace(
                loss=jax.device_put(np.nextafter(np.asarray(telemetry.loss), 9), telemetry.loss.sharding)
            )
        return state, telemetry

    monkeypatch.setattr(recompute, "train_step", faulty)
    with pytest.raises(ContractError, match=r"telemetry/loss: .* on all devices\..*xla_gpu_deterministic_ops=true") as caught:
        step_twice(state, batch, artifact="run", deterministic=False)
    assert "state/" not in caught.value.found
