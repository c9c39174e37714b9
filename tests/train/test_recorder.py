"""The flight recorder: what a bundle holds comes out as it went in, once, and not without end."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.train.recorder import Recorder, bundles, read_batch, read_state

PARENTS = {"tokenizer": "a" * 64, "data": "b" * 64, "model": "c" * 64, "run": "d" * 64}


@pytest.fixture
def batch():
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    return Batch(ids, ids + 1, ids > 2, np.ones_like(ids), np.zeros_like(ids))


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path / "bundles", ring=3, keep=2)


def bundle(recorder, step, batch, **more):
    return recorder.bundle(step, [{"detector": "loss spike", "step": step}], batch=batch, parents=PARENTS, **more)


def test_a_bundle_gives_back_state_batch_and_the_steps_before(recorder, batch):
    for step in range(1, 6):
        recorder.step({"step": step, "loss": "nan" if step == 5 else 1.5})
    state = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(4)}
    path = bundle(recorder, 5, batch, state=state)
    assert bundles(recorder.folder) == {5: path}
    for ours, theirs in zip(read_batch(path), batch, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    back = read_state(path, state)
    np.testing.assert_array_equal(back["params"]["w"], state["params"]["w"])
    assert int(back["step"]) == 4
    ring = (path / "ring.jsonl").read_text().splitlines()
    assert len(ring) == 3
    assert '"loss": "nan"' in ring[-1]


def test_a_step_whose_state_is_gone_names_its_checkpoint(recorder, batch):
    path = bundle(recorder, 7, batch, checkpoint=4)
    assert read_state(path, {}) is None
    assert '"checkpoint": 4' in (path / "manifest.json").read_text()


def test_a_state_that_is_not_finite_leaves_a_bundle_without_it(recorder, batch):
    """No checkpoint holds such a state; the alarm that asked for the bundle must not be lost over it."""
    state = {"params": {"w": jnp.array([1.0, jnp.nan])}}
    path = bundle(recorder, 5, batch, state=state)
    assert read_state(path, state) is None
    assert not (path / "state").exists()
    for ours, theirs in zip(read_batch(path), batch, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_there_are_never_more_bundles_than_asked_for(recorder, batch):
    assert [bundle(recorder, step, batch) is None for step in (3, 3, 5, 9)] == [False, True, False, True]
    assert list(bundles(recorder.folder)) == [3, 5]
    assert bundles(recorder.folder / "none") == {}


@pytest.mark.parametrize("name", ["batch.npz", "ring.jsonl", "state/00000002/manifest.json"])
def test_a_changed_byte_is_refused(recorder, batch, name):
    path = bundle(recorder, 3, batch, state={"w": jnp.ones(3)})
    raw = bytearray((path / name).read_bytes() or b"x")
    raw[len(raw) // 2] ^= 1
    (path / name).write_bytes(bytes(raw))
    with pytest.raises(ContractError):
        read_batch(path)
