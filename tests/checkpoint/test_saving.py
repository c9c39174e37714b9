"""One save: what it writes, and that nothing is left where anything fails."""

from __future__ import annotations

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import contract
from jaxlm.checkpoint import SaveError, saving, verifying
from jaxlm.checkpoint.leaves import host_leaves
from jaxlm.checkpoint.saving import Save
from jaxlm.contract import ContractError, Manifest

from .conftest import made_state


def job(tree, **facts):
    return Save(3, host_leaves(tree), {"step": 3, "metric": None, **facts}, {"run": "r"}, {"host": "here"})


def test_the_manifest_states_every_file_and_leaf_and_is_what_was_written(tmp_path, state):
    made = job(state).write(tmp_path / "new")
    read = Manifest.load(tmp_path / "new", "checkpoint")
    assert read.to_json() == made.to_json()
    files = {p.relative_to(tmp_path / "new").as_posix() for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert files == {*made.files, "manifest.json"}
    assert list(made.facts["leaves"]) == list(host_leaves(state))
    assert all(finding.kept for finding in verifying.verify_files(tmp_path / "new", read))


def test_equal_states_give_equal_fingerprints_and_others_do_not(tmp_path):
    made = [job(made_state(seed)).write(tmp_path / str(i)).fingerprint for i, seed in enumerate((0, 0, 1))]
    assert made[0] == made[1] != made[2]


def test_the_bytes_of_a_save_are_those_of_its_leaves():
    assert job({"a": jnp.zeros((2, 3)), "b": np.zeros(5, np.int8)}).bytes == 29


@pytest.mark.parametrize("cast", [lambda x: x.astype(np.float16), lambda x: x * 2, lambda x: x[:1], lambda x: x.reshape(-1, 1)])
def test_what_the_writer_changes_without_a_word_is_found_before_the_commit(tmp_path, monkeypatch, cast):
    write = saving.write_arrays
    monkeypatch.setattr(saving, "write_arrays", lambda at, arrays: write(at, arrays | {"b": cast(arrays["b"])}))
    with pytest.raises(ContractError, match=r"leaf b\)"):
        job({"a": jnp.zeros(2), "b": jnp.ones(2)}).write(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_leaf_that_the_writer_drops_is_found_before_the_commit(tmp_path, monkeypatch):
    write = saving.write_arrays
    monkeypatch.setattr(saving, "write_arrays", lambda at, arrays: write(at, {"a": arrays["a"]}))
    with pytest.raises(ContractError, match=r"leaf b\): expected float32\[2\]"):
        job({"a": jnp.zeros(2), "b": jnp.ones(2)}).write(tmp_path / "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stage", ["write_arrays", "read_leaves", "sync_below", "record_files"])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_whatever_fails_at_whatever_stage_leaves_nothing(tmp_path, monkeypatch, stage, error):
    whole = getattr(saving, stage)

    def fails(*arguments):
        whole(*arguments)
        raise error

    monkeypatch.setattr(saving, stage, fails)
    with pytest.raises(type(error)):
        job({"a": jnp.zeros(2)}).write(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_everything_is_flushed_before_the_manifest_is_written(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(contract, "sync_directory", lambda path: flushed.append(str(path)))
    save = Manifest.save

    def watched(manifest, directory):
        below = {str(p) for p in [directory, *directory.rglob("*")]}
        assert below == set(flushed)
        save(manifest, directory)

    monkeypatch.setattr(Manifest, "save", watched)
    job({"a": jnp.zeros(2), "b": jnp.zeros(3)}).write(tmp_path / "new")
    assert len(flushed) > 4


def test_a_save_error_says_what_is_durable_what_is_needed_and_what_is_free(tmp_path):
    error = SaveError(tmp_path / "00000009", 9, OSError("quota"), durable=None, bytes_needed=123)
    assert (error.step, error.durable, str(error.cause)) == (9, None, "quota")
    for part in (
        "00000009 was not saved",
        "write 123 bytes",
        "found OSError: quota",
        "Last durable step: none",
        "bytes are free",
    ):
        assert part in str(error)
    assert "No such file" in str(SaveError(tmp_path / "gone" / "1", 1, OSError("x"), durable=2, bytes_needed=1))
