"""What stands guard between the steps: each kind fires on its fault, names it, leaves an event, and is silent without one."""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config import schema
from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.model import LossScale
from jaxlm.parallel import make_mesh
from jaxlm.train import fit, train_step
from jaxlm.train.guard import Guard
from jaxlm.train.state import initial_state, put_batch
from jaxlm.watch import read_log
from jaxlm.watch.recompiles import RecompilationWarning
from tests.conftest import tiny_config

guard_module = importlib.import_module("jaxlm.train.guard")
CFG = schema.RunConfig(
    model=schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=16, vocab_size=50, vocab_multiple=64),
    train=schema.TrainConfig(batch_size=4),
    mesh=schema.MeshConfig(data=2, fsdp=2, rules="fsdp"),
)


def made(rows=4):
    ids = np.random.default_rng(0).integers(0, 50, (rows, 17), dtype=np.int32)
    ones = np.ones((rows, 16), np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], ones.astype(bool), ones, np.tile(np.arange(16, dtype=np.int32), (rows, 1)))


@pytest.fixture(scope="module")
def mesh():
    with jax.set_mesh(mesh := make_mesh(CFG.mesh)):
        yield mesh


@pytest.fixture
def watched():
    """A guard of a config with the given fields of `watch`, and the list of its events."""

    def of(precision="float32", **watch):
        cfg = dataclasses.replace(
            CFG, watch=schema.WatchConfig(**watch), train=dataclasses.replace(CFG.train, precision=precision)
        )
        events = []
        return Guard(cfg, Path("runs/x"), deterministic=True, event=lambda name, **about: events.append((name, about))), events

    return of


def drifting(state, on=3):
    """The state with the lowest bit of one element of one buffer of a parameter changed."""
    embed = state.params.embed
    buffers = []
    for shard in embed.addressable_shards:
        part = np.array(shard.data)
        part.view(np.uint32)[0, 0] ^= np.uint32(shard.device.id == on)
        buffers.append(jax.device_put(part, shard.device))
    embed = jax.make_array_from_single_device_arrays(embed.shape, embed.sharding, buffers)
    return dataclasses.replace(state, params=dataclasses.replace(state.params, embed=embed))


def test_a_clean_run_of_steps_fires_nothing_and_compares_and_recomputes_when_it_is_time(mesh, watched, monkeypatch):
    guard, events = watched(replicas_every=2, recompute_every=3)
    compared, twice = [], []
    real_compare, real_twice = guard_module.require_equal_replicas, guard_module.step_twice

    def compare(tree, **about):
        compared.append(int(tree.step))
        real_compare(tree, **about)

    def again(state, batch, **about):
        twice.append(int(state.step) + 1)
        return real_twice(state, batch, **about)

    monkeypatch.setattr(guard_module, "require_equal_replicas", compare)
    monkeypatch.setattr(guard_module, "step_twice", again)
    state, batch = initial_state(CFG, mesh), put_batch(made(), CFG, mesh)
    for step in range(1, 8):
        state, _ = guard.step(state, batch, step)
        guard.after(state, {"step": step, "finite": True})
        if step in (4, 7):
            guard.compare(state, step)  # as before a checkpoint; what was just compared is not compared again
    assert (compared, twice, events) == ([0, 2, 4, 6, 7], [3, 6], [])


def test_a_replica_that_drifted_stops_the_run_at_the_next_comparison_with_an_event(mesh, watched):
    guard, events = watched(replicas_every=2)
    state, batch = initial_state(CFG, mesh), put_batch(made(), CFG, mesh)
    state, _ = guard.step(state, batch, 1)
    state = drifting(state)
    guard.after(state, {"step": 1, "finite": True})
    with pytest.raises(ContractError, match=r"params/embed: \w{16} on cpu:1, \w{16} on cpu:3\.") as caught:
        guard.after(state, {"step": 2, "finite": True})
    assert caught.value.artifact == "runs/x after step 2"
    assert events == [("replicas", {"step": 2, "artifact": "runs/x after step 2", "found": caught.value.found})]


def test_a_state_that_drifted_before_the_first_step_is_not_trained(mesh, watched):
    guard, _ = watched(replicas_every=0)
    with pytest.raises(ContractError, match="params/embed"):
        guard.step(drifting(initial_state(CFG, mesh)), put_batch(made(), CFG, mesh), 1)


def test_another_batch_shape_is_a_warning_and_an_event_that_names_it(mesh, watched, monkeypatch):
    monkeypatch.setattr(guard_module, "train_step", jax.jit(lambda state, batch: (state, batch.tokens.sum())))
    guard, events = watched()
    state = {"step": put_batch(np.zeros((4, 16), np.int32), CFG, mesh)}
    for step in (1, 2):
        guard.step(state, put_batch(made(), CFG, mesh), step)
    with pytest.warns(RecompilationWarning, match=r"<lambda>\) in step, .*batch/tokens was int32\[4,16\].*int32\[8,16\]"):
        guard.step(state, put_batch(made(8), CFG, mesh), 3)
    ((name, about),) = events
    assert (name, about["step"], about["phase"]) == ("recompiled", 3, "step")
    assert "batch/tokens" in about["found"]


# ---- the loss scale ----------------------------------------------------------------------------------------------


def scale_state(scale):
    return type("State", (), {"loss_scale": LossScale(jnp.float32(scale), jnp.int32(0))})


def record(scale, finite, step=5):
    return {"step": step, "loss_scale": scale, "finite": finite, "nonfinite": "" if finite else "blocks/wq[1]"}


def test_every_move_of_the_scale_is_an_event_and_a_scale_that_stays_is_none(watched):
    guard, events = watched("float16", replicas_every=0)
    guard.after(scale_state(2.0**15), record(2.0**15, True))
    guard.after(scale_state(2.0**14), record(2.0**15, False, step=6))
    guard.after(scale_state(2.0**15), record(2.0**14, True, step=7))
    assert events == [
        ("loss_scale", {"step": 6, "before": 2.0**15, "after": 2.0**14, "finite": False}),
        ("loss_scale", {"step": 7, "before": 2.0**14, "after": 2.0**15, "finite": True}),
    ]


def test_a_gradient_that_is_not_finite_at_the_least_scale_stops_the_run(watched):
    guard, events = watched("float16", replicas_every=0)
    guard.after(scale_state(1.0), record(2.0, False))
    with pytest.raises(ContractError, match=r"least loss scale, 1, found none in blocks/wq\[1\]") as caught:
        guard.after(scale_state(1.0), record(1.0, False, step=6))
    assert caught.value.contract == "loss_scale"
    assert [event for event, _ in events] == ["loss_scale"]
    guard.after(scale_state(1.0), record(1.0, True))


def test_without_float16_a_scale_of_one_is_no_floor(watched):
    guard, _ = watched("float32", replicas_every=0)
    guard.after(scale_state(1.0), record(1.0, False))


# ---- a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_mantissa_bit_in_one_of_eight_replicas_is_named_and_never_saved(tmp_path, monkeypatch):
    cfg = dataclasses.replace(
        tiny_config(steps=8, batch_size=8),
        mesh=schema.MeshConfig(data=8, rules="dp"),
        watch=schema.WatchConfig(print_every=1000, replicas_every=100),
        checkpoint=schema.CheckpointConfig(every=2),
    )

    def faulty(state, batch):
        state, telemetry = train_step(state, batch)
        return (drifting(state, on=6) if int(state.step) == 3 else state), telemetry

    monkeypatch.setattr(guard_module, "train_step", faulty)
    with pytest.raises(ContractError, match=r"params/embed: \w{16} on 7 devices, \w{16} on cpu:6\. A device"):
        fit(cfg, out=tmp_path / "run", say=lambda line: None)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]
    events = [event for event, _ in read_log(tmp_path / "run" / "events.jsonl")]
    assert (events[-1]["event"], events[-1]["step"]) == ("replicas", 4)


@pytest.mark.slow
def test_a_float16_run_that_overflows_says_so_and_is_in_its_checkpoint(tmp_path, monkeypatch):
    create = LossScale.create.__func__
    raised = classmethod(lambda cls, policy: create(cls, policy).replace(scale=jnp.float32(2.0**40)))
    monkeypatch.setattr(LossScale, "create", raised)
    run = fit(tiny_config(steps=4, precision="float16", max_skipped=100), out=tmp_path / "run", say=lambda line: None)
    steps = run.telemetry()
    assert [s["loss_scale"] for s in steps] == [2.0**40, 2.0**39, 2.0**38, 2.0**37]
    moves = [(e["step"], e["before"], e["after"]) for e in run.events() if e["event"] == "loss_scale"]
    assert moves == [(n + 1, 2.0 ** (40 - n), 2.0 ** (39 - n)) for n in range(4)]
    assert "loss_scale/scale" in run.checkpoint.facts["leaves"]
