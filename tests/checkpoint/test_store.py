"""Saving and restoring: bitwise, compared before read, kept by age and metric, never half-written."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore, SaveError, saving, verifying
from jaxlm.contract import ContractError, InputError, Manifest

from .conftest import abstract, assert_equal_bits, made_state, save


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "checkpoints", keep_last=9, asynchronous=False) as made:
        yield made


# ---- bitwise -----------------------------------------------------------------------------------------------------


def test_any_state_comes_back_with_its_bits_dtypes_shapes_and_shardings(store, state):
    save(store, state, 7)
    for like in (abstract(state), made_state(1)):
        restored, manifest = store.restore(like)
        assert_equal_bits(restored, state)
        assert manifest.facts["step"] == 7
    restored, _ = store.restore(abstract(state))
    for name in ("sharded", "replicated"):
        assert restored[name].sharding == state[name].sharding
    assert isinstance(restored["odd"]["numpy"], np.ndarray)


def test_a_state_is_laid_on_other_devices_as_the_tree_asks(store, state):
    save(store, state, 1)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    other = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    like = {**abstract(state), "sharded": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=other)}
    restored, _ = store.restore(like)
    assert restored["sharded"].sharding == other
    assert_equal_bits(restored, state)


def test_restored_buffers_may_be_donated(store, state):
    save(store, state, 1)
    like = abstract(state)
    restored, _ = store.restore(like)
    jax.jit(lambda x: x * 0, donate_argnums=0)(restored["params"]["wq"]).block_until_ready()
    assert_equal_bits(store.restore(like)[0], state)


def test_a_part_of_the_state_is_restored_by_its_prefix(store, state):
    save(store, state, 1)
    restored, _ = store.restore(abstract(state["params"]), below="params")
    assert_equal_bits(restored, state["params"])


def test_an_asynchronous_save_holds_the_state_of_its_call(tmp_path, monkeypatch):
    # The writer waits until the buffers were donated and overwritten.
    gate, write = threading.Event(), saving.write_arrays
    monkeypatch.setattr(saving, "write_arrays", lambda *a: gate.wait(60) and write(*a))
    donated, numpy = jnp.arange(1000.0), np.arange(1000.0)
    with CheckpointStore(tmp_path) as store:
        save(store, {"jax": donated, "numpy": numpy}, 1)
        for _ in range(3):
            donated = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(donated)
        numpy[:] = -1
        donated.block_until_ready()
        assert store.poll() is None
        assert store.latest() is None
        gate.set()
        assert store.wait().facts["step"] == 1
        restored, _ = store.restore({"jax": jax.ShapeDtypeStruct((1000,), jnp.float32), "numpy": np.zeros(1000)})
    np.testing.assert_array_equal(restored["jax"], np.arange(1000))
    np.testing.assert_array_equal(restored["numpy"], np.arange(1000))


def test_poll_tells_of_each_save_once(tmp_path, state):
    with CheckpointStore(tmp_path) as store:
        save(store, state, 3)
        store._future.result()
        assert store.poll().facts["step"] == 3
        assert store.poll() is None
        assert store.wait() is None


def test_facts_parents_provenance_and_metric_are_recorded(store, state):
    save(store, state, 4, facts={"cursor": 4}, parents={"model": "f" * 64}, metric=1.5, provenance={"host": "here"})
    manifest = store.manifest(4)
    assert manifest.facts["cursor"] == 4
    assert manifest.facts["metric"] == 1.5
    assert manifest.parents == {"model": "f" * 64}
    assert manifest.provenance == {"host": "here"}
    record = manifest.facts["leaves"]["params/norm"]
    assert (record["dtype"], record["shape"]) == ("bfloat16", [6])


# ---- which stay --------------------------------------------------------------------------------------------------

TINY = {"x": jnp.ones(2)}


def test_the_newest_and_the_best_stay(tmp_path):
    with CheckpointStore(tmp_path, keep_last=2, keep_best=1) as store:
        for step, metric in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 5.0)):
            save(store, TINY, step, metric=metric)
        store.wait()
        assert store.steps() == store.committed() == [2, 4, 5]
        assert store.latest() == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000004", "00000005"]


def test_a_choice_of_the_worst_is_refused_before_anything_is_removed(tmp_path, monkeypatch):
    module = importlib.import_module("jaxlm.checkpoint.store")
    real = module.steps_to_keep
    with CheckpointStore(tmp_path, keep_last=1, keep_best=1) as store:
        save(store, TINY, 1, metric=1.0)
        store.wait()
        monkeypatch.setattr(module, "steps_to_keep", lambda metrics, **rule: real({s: -m for s, m in metrics.items()}, **rule))
        save(store, TINY, 2, metric=3.0)
        with pytest.raises(ContractError, match=r"and so step 1 to stay, 1 newer, 0 better, loss 1, found it among"):
            store.wait()
        assert store.steps() == [1, 2]
        monkeypatch.undo()
        save(store, TINY, 3, metric=2.0)
        store.wait()
        assert store.steps() == [1, 3]


def test_a_damaged_checkpoint_is_neither_counted_nor_removed(tmp_path):
    with CheckpointStore(tmp_path, keep_last=1, keep_best=0, asynchronous=False) as store:
        save(store, TINY, 1)
        (store.path(1) / "manifest.json").write_text("{}")
        save(store, TINY, 2)
        save(store, TINY, 3)
        assert store.committed() == [1, 3]
        assert store.steps() == [3]


def test_what_a_killed_save_left_is_removed_only_when_asked(tmp_path):
    left = tmp_path / ".00000400.0123abcd.tmp" / "state"
    left.mkdir(parents=True)
    others = [tmp_path / name for name in (".notes", "notes", ".00000400.tmp")]
    for other in others:
        other.mkdir()
    CheckpointStore(tmp_path).close()
    assert left.is_dir()
    CheckpointStore(tmp_path, clean=True).close()
    assert not left.parent.exists()
    assert all(other.is_dir() for other in others)


def test_names_that_are_no_steps_are_no_checkpoints(tmp_path):
    for name in ("7", "00000007x", "000000007", "٠٠٠٠٠٠٠٧"):
        (tmp_path / name).mkdir()
    (tmp_path / "00000009").write_text("a file")
    store = CheckpointStore(tmp_path)
    assert store.committed() == []
    assert store.path(123456789).name == "123456789"


# ---- a step twice ------------------------------------------------------------------------------------------------


def test_the_same_step_twice_is_left_as_it_is_and_another_state_is_refused(store, state):
    save(store, state, 5, parents={"run": "a"})
    before = (store.path(5) / "manifest.json").stat().st_mtime_ns
    save(store, state, 5, parents={"run": "a"})
    assert (store.path(5) / "manifest.json").stat().st_mtime_ns == before
    other = {**state, "params": {**state["params"], "wq": state["params"]["wq"] + 1}}
    with pytest.raises(ContractError, match=r"\(leaf params/wq\).*durable already"):
        save(store, other, 5, parents={"run": "a"})
    with pytest.raises(ContractError, match=r"\(parent run\)"):
        save(store, state, 5, parents={"run": "b"})
    assert_equal_bits(store.restore(abstract(state))[0], state)


def test_a_damaged_step_is_replaced_with_a_warning(store, state):
    save(store, state, 5)
    file = next((store.path(5) / "state" / "params.wq").glob("0*"))
    file.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"replacing a damaged checkpoint.*leaf params/wq"):
        save(store, state, 5)
    assert_equal_bits(store.restore(abstract(state))[0], state)


# ---- compared before it is read ----------------------------------------------------------------------------------


@pytest.fixture
def unread(store, state, monkeypatch):
    """A store with steps 1 and 2, of which no data can be read."""
    for step in (1, 2):
        save(store, state, step, facts={"cursor": step}, parents={"tokenizer": "t1"})

    def refuse(*_):
        raise AssertionError("data was read")

    monkeypatch.setattr(verifying, "read_arrays", refuse)
    return store


@pytest.mark.parametrize("allow_older", [False, True])
def test_every_leaf_that_does_not_fit_is_named_before_any_data_is_read(unread, state, allow_older):
    like = abstract(state)
    like["params"] = {**like["params"], "wq": jax.ShapeDtypeStruct((6, 4), jnp.float32), "new": jax.ShapeDtypeStruct((), bool)}
    like["params"]["norm"] = jax.ShapeDtypeStruct((6,), jnp.float32)
    del like["params"]["half"]
    like["key"] = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ContractError) as caught:
            unread.restore(like, allow_older=allow_older)
    assert caught.value.expected == (
        "key key<rbg>[]; no leaf params/half; params/new bool[]; params/norm float32[6]; params/wq float32[6,4]"
    )
    assert caught.value.found == (
        "key key<fry>[]; params/half float16[3]; no leaf params/new; params/norm bfloat16[6]; params/wq float32[4,6]"
    )


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"cursor": 3}, "expected cursor 3, found cursor 2"),
        ({"tokenizer": "t2"}, "expected tokenizer 't2', found tokenizer 't1'"),
        ({"data": "d"}, "found no fact or parent named data"),
    ],
)
@pytest.mark.parametrize("allow_older", [False, True])
def test_facts_and_parents_that_differ_are_refused_before_any_data_is_read(unread, state, expect, message, allow_older):
    with pytest.raises(ContractError, match=message):
        unread.restore(abstract(state), expect=expect, allow_older=allow_older)


def test_facts_and_parents_that_agree_pass(store, state):
    save(store, state, 1, facts={"shape": {"data": 1}}, parents={"tokenizer": "t1"})
    store.restore(abstract(state), expect={"shape": {"data": 1}, "tokenizer": "t1", "step": 1})


# ---- refused -----------------------------------------------------------------------------------------------------


def test_a_state_that_is_not_finite_is_refused_and_nothing_is_written(store, state):
    bad = {**state, "params": {**state["params"], "norm": state["params"]["norm"].at[2].set(jnp.nan)}}
    with pytest.raises(ContractError, match=r"leaf params/norm.*1 of 6 values of params/norm NaN .*Nothing was saved"):
        save(store, bad, 1)
    assert not store.directory.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step": -1}, ValueError, "step >= 0, found -1"),
        ({"step": 1.5}, TypeError, "float"),
        ({"step": 1, "metric": float("nan")}, ValueError, "finite metric"),
        ({"step": 1, "facts": {"leaves": 1}}, ValueError, "other than step, metric, leaves, found leaves"),
        ({"step": 1, "facts": {"x": float("inf")}}, ValueError, "JSON"),
        ({"step": 1, "facts": {"x": object()}}, TypeError, "no place in a manifest"),
    ],
)
def test_bad_arguments_are_refused_at_once(store, arguments, error, message):
    with pytest.raises(error, match=message):
        save(store, TINY, **arguments)
    assert not store.directory.exists()
    with pytest.raises(ValueError, match="keep_last >= 1 and keep_best >= 0, found 0 and 1"):
        CheckpointStore(store.directory, keep_last=0)


def test_a_step_that_is_not_there_is_named_with_those_that_are(store, state):
    with pytest.raises(InputError, match=r"checkpoints: expected a checkpoint, found none; train first"):
        store.restore(state)
    save(store, TINY, 2)
    save(store, TINY, 4)
    with pytest.raises(InputError, match="expected a checkpoint of step 3, found steps 2, 4"):
        store.restore(TINY, 3)
    with pytest.raises(InputError, match="step 5"):
        store.restore(TINY, 5, allow_older=True)


def test_a_checkpoint_of_another_step_or_without_leaves_is_refused(store, state):
    save(store, TINY, 2)
    shutil.copytree(store.path(2), store.path(3))
    with pytest.raises(ContractError, match="expected step 3, found step 2"):
        store.restore(TINY, 3)
    assert store.steps() == [2]


# ---- a save that fails -------------------------------------------------------------------------------------------


def poll_until_told(store):
    while True:
        store.poll()


TOLD = {
    "wait": CheckpointStore.wait,
    "poll": poll_until_told,
    "save": lambda store: save(store, TINY, 3),
    "close": CheckpointStore.close,
    "restore": lambda store: store.restore(TINY),
    "exit": lambda store: store.__exit__(None, None, None),
}


@pytest.mark.parametrize("tell", TOLD.values(), ids=TOLD)
def test_a_failed_save_is_told_of_at_the_next_occasion_and_the_older_one_stays(full_disk, tell):
    store, state, big, there = full_disk
    save(store, big, 2)
    with pytest.raises(SaveError) as caught:
        tell(store)
    error = caught.value
    assert (error.step, error.durable) == (2, 1)
    for part in ("00000002 was not saved", "Last durable step: 1", "No space left", "Free space", "--checkpoint.keep-last"):
        assert part in str(error)
    assert there() == ["00000001"]
    assert store.poll() is None
    assert_equal_bits(store.restore(abstract(state))[0], state)


def test_after_a_failed_save_the_next_one_is_saved(full_disk):
    store, _, big, there = full_disk
    save(store, big, 2)
    with pytest.raises(SaveError):
        store.wait()
    save(store, {"x": jnp.zeros(4)}, 3)
    assert store.wait().facts["step"] == 3
    assert there() == ["00000001", "00000003"]


def test_an_error_in_the_block_and_a_failed_save_are_both_told(full_disk):
    store, _, big, _ = full_disk

    def loop():
        with store:
            save(store, big, 2)
            raise KeyError("the loop's own")

    with pytest.raises(KeyError) as caught:
        loop()
    assert "00000002 was not saved" in caught.value.__notes__[0]


def test_the_manifest_is_the_last_file_and_the_rename_comes_after_it(tmp_path, monkeypatch):
    seen = []
    write = Manifest.save

    def watched(manifest, directory):
        seen.append((sorted(p.name for p in directory.iterdir()), [p.name for p in tmp_path.glob("[0-9]*")]))
        write(manifest, directory)

    monkeypatch.setattr(Manifest, "save", watched)
    with CheckpointStore(tmp_path, asynchronous=False) as store:
        save(store, TINY, 1)
    assert seen == [(["state"], [])]
    assert json.loads((tmp_path / "00000001" / "manifest.json").read_text())["facts"]["step"] == 1
