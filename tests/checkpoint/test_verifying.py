"""Damage: flipped bits, cut, lost, added and swapped files are refused by name, or passed over loudly."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.checkpoint.arrays import leaf_directory, leaves_of_files
from jaxlm.checkpoint.leaves import LeafRecord
from jaxlm.checkpoint.verifying import read_leaves, records_of, stored_dtype, verify_files
from jaxlm.contract import ContractError, Manifest, record_files

from .conftest import abstract, assert_equal_bits, made_state, save

OLD, NEW = 4, 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A store with two steps: the store, and the state of each."""
    store = CheckpointStore(tmp_path_factory.mktemp("saved"), asynchronous=False)
    states = {step: made_state(step, odd=False) for step in (OLD, NEW)}
    for step, state in states.items():
        save(store, state, step)
    return store, states


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A store whose state has leaves with rare names."""
    store = CheckpointStore(tmp_path_factory.mktemp("odd"), asynchronous=False)
    save(store, made_state(), NEW)
    return store


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the store with two steps, to be damaged."""
    store, states = saved
    shutil.copytree(store.directory, tmp_path / "copy")
    return CheckpointStore(tmp_path / "copy"), states


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def refused(store, like, path: Path) -> ContractError:
    """The error of restoring the newest step, which must name the file and the leaf that it belongs to."""
    with pytest.raises(ContractError) as caught:
        store.restore(like)
    root = store.path(NEW)
    name = path.relative_to(root).as_posix()
    leaf = leaves_of_files([name], store.manifest(OLD).facts["leaves"])[name]
    assert str(path) in str(caught.value)
    assert leaf is None or f"(leaf {leaf})" in str(caught.value)
    assert leaf is not None or path.name in ("manifest.json", "_METADATA")
    assert f"--allow-older` takes step {OLD}, `--step {OLD}` elsewhere" in str(caught.value)
    return caught.value


def test_one_random_bit_in_a_random_file_is_refused_two_hundred_times_of_two_hundred(saved):
    store, states = saved
    like, draw = abstract(states[NEW]), random.Random(0)
    files = files_of(store.path(NEW))
    chosen = [store.path(NEW) / "manifest.json", *(draw.choice(files) for _ in range(199))]
    leaves_named = set()
    for path in chosen:
        whole = path.read_bytes()
        place = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        leaves_named.add(refused(store, like, path).artifact)
        path.write_bytes(whole)
    assert len(leaves_named) == len(files)
    assert_equal_bits(store.restore(like)[0], states[NEW])


@pytest.mark.parametrize("how", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[1:] + b[:1]])
def test_files_cut_grown_emptied_or_turned_are_refused(saved, how):
    store, states = saved
    for path in files_of(store.path(NEW)):
        whole = path.read_bytes()
        if how(whole) != whole:
            path.write_bytes(how(whole))
            refused(store, abstract(states[NEW]), path)
            path.write_bytes(whole)


def test_lost_files_are_refused(copied):
    store, states = copied
    for path in files_of(store.path(NEW)):
        whole = path.read_bytes()
        path.unlink()
        refused(store, abstract(states[NEW]), path)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["notes", "state/other", "state/params.wq/1.0", "state/params.wq/.hidden"])
def test_an_added_file_is_refused(copied, name):
    store, states = copied
    path = store.path(NEW) / name
    path.write_bytes(b"")
    with pytest.raises(ContractError, match=rf"{name}.*expected no such file, found one") as caught:
        store.restore(abstract(states[NEW]))
    assert ("(leaf params/wq)" in str(caught.value)) == ("params.wq" in name)


def test_an_added_link_is_refused(copied):
    store, states = copied
    (store.path(NEW) / "state" / "link").symlink_to("/nowhere")
    with pytest.raises(ContractError, match=r"state/link.*expected no such file"):
        store.restore(abstract(states[NEW]))


def test_swapped_files_are_refused_for_every_pair_of_leaves(copied):
    store, states = copied
    chunks = [path for path in files_of(store.path(NEW) / "state") if path.name[0].isdigit()]
    swapped = 0
    for a, b in itertools.combinations(chunks, 2):
        first, second = a.read_bytes(), b.read_bytes()
        if first != second:
            a.write_bytes(second)
            b.write_bytes(first)
            refused(store, abstract(states[NEW]), a)
            a.write_bytes(first)
            b.write_bytes(second)
            swapped += 1
    assert swapped > 20


def test_a_leaf_of_the_older_step_is_refused_in_the_newer_one(copied):
    store, states = copied
    place = Path("state") / leaf_directory("params/wq")
    shutil.rmtree(store.path(NEW) / place)
    shutil.copytree(store.path(OLD) / place, store.path(NEW) / place)
    with pytest.raises(ContractError, match=r"leaf params/wq"):
        store.restore(abstract(states[NEW]))


def test_a_manifest_of_the_older_step_is_refused_in_the_newer_one(copied):
    store, states = copied
    shutil.copy(store.path(OLD) / "manifest.json", store.path(NEW))
    with pytest.raises(ContractError, match=f"expected step {NEW}, found step {OLD}"):
        store.restore(abstract(states[NEW]))


def test_damage_of_a_leaf_with_a_rare_name_names_it(odd):
    root = odd.path(NEW)
    leaves = odd.manifest(NEW).facts["leaves"]
    named = set()
    for path in files_of(root / "state"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        broken = [finding for finding in odd.verify(NEW) if not finding.kept]
        path.write_bytes(whole)
        assert [finding.artifact.startswith(str(path)) for finding in broken] == [True]
        named.add(broken[0].artifact.removeprefix(f"{path} (leaf ")[:-1])
    filled = {name for name, leaf in leaves.items() if math.prod(leaf["shape"])}
    assert filled < named
    assert "odd/ü *?/\n..%2E~" in named


# ---- an older checkpoint, when asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "state/_METADATA", "state/params.wq/0.0"])
def test_the_older_checkpoint_is_taken_loudly_and_only_when_asked(copied, name):
    store, states = copied
    path = store.path(NEW) / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ContractError, match=rf"{name}.*`jaxlm train .* --allow-older` takes step {OLD}, `--step {OLD}`"):
        store.restore(abstract(states[NEW]))
    with pytest.warns(UserWarning, match=rf"step {NEW} is damaged and passed over: .*{name}"):
        restored, manifest = store.restore(abstract(states[NEW]), allow_older=True)
    assert_equal_bits(restored, states[OLD])
    assert manifest.facts["step"] == OLD
    assert [note["step"] for note in manifest.provenance["refused"]] == [NEW]
    assert name in manifest.provenance["refused"][0]["error"]


def test_with_all_damaged_the_error_names_each_and_promises_no_other(copied):
    store, states = copied
    for step in (OLD, NEW):
        (store.path(step) / "state" / "_METADATA").unlink()
    with pytest.raises(ContractError, match="No older checkpoint is whole"):
        store.restore(abstract(states[NEW]))
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(ContractError) as caught:
        store.restore(abstract(states[NEW]), allow_older=True)
    for step in (OLD, NEW):
        assert f"{step:08d}/state/_METADATA" in str(caught.value)


def test_a_whole_checkpoint_is_not_passed_over(saved, recwarn):
    store, states = saved
    restored, manifest = store.restore(abstract(states[NEW]), allow_older=True)
    assert_equal_bits(restored, states[NEW])
    assert "refused" not in manifest.provenance
    assert not recwarn.list


# ---- leaves against their records --------------------------------------------------------------------------------


def test_verify_is_deep_only_when_asked_and_all_is_kept(saved):
    store, _ = saved
    shallow, deep = store.verify(NEW), store.verify(NEW, deep=True)
    assert all(finding.kept for finding in deep)
    assert len(deep) - len(shallow) == len(store.manifest(NEW).facts["leaves"])


@pytest.mark.parametrize(
    "record",
    [
        LeafRecord((6, 4), "float32", ""),
        LeafRecord((4, 6), "int32", ""),
        LeafRecord((24,), "float32", ""),
        LeafRecord((4, 6), "float32", "0" * 64),
    ],
)
def test_a_leaf_that_is_not_what_was_recorded_is_found_though_its_files_are_whole(saved, record):
    store, _ = saved
    _, findings = read_leaves(store.path(NEW), {"params/wq": record})
    assert [(finding.kept, finding.artifact) for finding in findings] == [(False, f"{store.path(NEW)} (leaf params/wq)")]


def test_files_recorded_anew_do_not_hide_a_changed_leaf(copied):
    store, states = copied
    root, manifest = store.path(NEW), store.manifest(NEW)
    path = root / "state" / "params.wq" / "0.0"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    dataclasses.replace(manifest, files=record_files(root)).save(root)
    assert all(finding.kept for finding in verify_files(root, store.manifest(NEW)))
    with pytest.raises(ContractError, match=r"leaf params/wq\): expected sha256"):
        store.restore(abstract(states[NEW]))
    with pytest.warns(UserWarning, match="leaf params/wq"):
        assert_equal_bits(store.restore(abstract(states[NEW]), allow_older=True)[0], states[OLD])


def test_records_are_those_of_the_manifest(saved):
    store, _ = saved
    records = records_of(store.manifest(NEW))
    assert records["params/norm"].dtype == "bfloat16"
    assert stored_dtype(records["params/norm"]).itemsize == 2
    assert stored_dtype(records["key"]) == np.uint32
    assert isinstance(store.manifest(NEW), Manifest)
