"""A run's parts, loaded when asked for; each broken contract is raised when its part is loaded, and not before."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxlm.config.load import config_fingerprint, read_resolved, resolved_json
from jaxlm.contract import ContractError, FileRecord, InputError, Manifest
from jaxlm.model import model_manifest
from jaxlm.run import Run, directory
from jaxlm.tokenizer import Tokenizer
from jaxlm.train.probes_forward import FORWARD
from jaxlm.train.probes_initial import INITIAL
from jaxlm.train.probes_update import UPDATE
from jaxlm.train.probes_whole import WHOLE


def flip(path, at=-2):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def swapped(tokenizer: Tokenizer) -> Tokenizer:
    """Another tokenizer of equal size."""
    return Tokenizer(tokenizer.merges, ("<|end|>",), tokenizer.pattern)


def test_every_part_of_a_finished_run_can_be_loaded(finished):
    run = Run.load(finished)
    assert run.path == finished
    assert run.step == 12
    assert run.tokenizer.vocab_size == run.config.model.vocab_size == 300
    assert run.data.manifest.parents["tokenizer"] == run.tokenizer.fingerprint == run.manifest.parents["tokenizer"]
    assert run.checkpoint.parents["run"] == run.manifest.fingerprint
    assert run.model.facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert [record["step"] for record in run.telemetry()] == list(range(1, 13))
    assert {event["event"] for event in run.events()} >= {"start", "probes", "validation", "save", "end"}
    assert run.params is run.params


def test_parameters_of_an_older_step_are_taken_when_asked_for(finished):
    older, newest = Run.load(finished, step=8), Run.load(finished)
    assert older.checkpoint.facts["step"] == older.step == 8
    assert (np.asarray(older.params.embed) != np.asarray(newest.params.embed)).any()


def test_nothing_but_manifest_and_config_is_read_on_loading(run_copy):
    for part in ("tokenizer", "data", "checkpoints", "evaluations"):
        shutil.rmtree(run_copy / part)
    for log in ("telemetry.jsonl", "events.jsonl"):
        (run_copy / log).unlink()
    assert Run.load(run_copy).config.name == "tiny"
    assert Run.load(run_copy).telemetry() == []


@pytest.mark.parametrize("file", ["manifest.json", "resolved.json"])
@pytest.mark.parametrize("at", [0, 30, -2])
def test_a_changed_manifest_or_config_is_refused_on_loading(run_copy, file, at):
    flip(run_copy / file, at)
    with pytest.raises(ContractError, match=file):
        Run.load(run_copy)


def test_a_config_edited_with_a_new_fingerprint_is_refused_on_loading(run_copy):
    config = read_resolved(run_copy / "resolved.json")
    edited = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1.0))
    (run_copy / "resolved.json").write_bytes(resolved_json(edited))
    with pytest.raises(ContractError, match=r"contract 'run' is broken at .*resolved.json"):
        Run.load(run_copy)
    quieter = dataclasses.replace(config, watch=dataclasses.replace(config.watch, print_every=7))
    assert config_fingerprint(quieter) == config_fingerprint(config)
    (run_copy / "resolved.json").write_bytes(resolved_json(quieter))
    with pytest.raises(ContractError, match=r"contract 'run' is broken at .*resolved.json"):
        Run.load(run_copy)
    (run_copy / "resolved.json").write_bytes(resolved_json(edited))
    manifest = Manifest.load(run_copy)
    record = FileRecord.of(run_copy / "resolved.json")
    dataclasses.replace(manifest, files={"resolved.json": record}).save(run_copy)
    with pytest.raises(ContractError, match=rf"expected config .*, found config {config_fingerprint(edited)}"):
        Run.load(run_copy)


@pytest.mark.parametrize(
    ("damage", "part", "names"),
    [
        ("tokenizer/bpe.json", "tokenizer", "bpe.json"),
        ("data/train-00000.bin", "data", "train-00000.bin"),
        ("data/val.index.bin", "data", "val.index.bin"),
        ("tokenizer/manifest.json", "model", "tokenizer/manifest.json"),
        ("checkpoints/00000012/manifest.json", "checkpoint", "00000012/manifest.json"),
        ("checkpoints/00000012/state/params.embed/0.0", "params", r"leaf params/embed\)"),
    ],
)
def test_a_damaged_part_is_refused_when_it_is_loaded_and_not_before(run_copy, damage, part, names):
    flip(run_copy / damage)
    run = Run.load(run_copy)
    with pytest.raises(ContractError, match=names):
        getattr(run, part)


def test_a_swapped_tokenizer_of_equal_size_is_refused_by_every_part(run_copy):
    other = swapped(Tokenizer.load(run_copy / "tokenizer"))
    shutil.rmtree(run_copy / "tokenizer")
    other.save(run_copy / "tokenizer")
    assert other.vocab_size == 300
    for part in ("tokenizer", "data", "model", "checkpoint", "params"):
        with pytest.raises(ContractError, match=r"tokenizer|model"):
            getattr(Run.load(run_copy), part)
    with pytest.raises(ContractError, match=rf"expected tokenizer [0-9a-f]{{64}}, found tokenizer {other.fingerprint}"):
        _ = Run.load(run_copy).tokenizer


def test_shards_of_another_tokenizer_are_refused_though_they_are_whole(run_copy):
    manifest = Manifest.load(run_copy / "data")
    parents = {"tokenizer": swapped(Tokenizer.load(run_copy / "tokenizer")).fingerprint}
    dataclasses.replace(manifest, parents=parents).save(run_copy / "data")
    with pytest.raises(ContractError, match=f"contract 'data'.*expected tokenizer {parents['tokenizer']}"):
        _ = Run.load(run_copy).data


def test_other_shards_of_the_same_tokenizer_are_refused(run_copy):
    manifest = Manifest.load(run_copy / "data")
    dataclasses.replace(manifest, facts={**manifest.facts, "order_seed": 1}).save(run_copy / "data")
    with pytest.raises(ContractError, match=r"contract 'run'.*expected data .*, found data"):
        _ = Run.load(run_copy).data


@pytest.mark.parametrize("parent", ["model", "tokenizer", "run"])
def test_a_checkpoint_of_another_run_is_refused(run_copy, parent):
    manifest = Manifest.load(run_copy / "checkpoints" / "00000012")
    parents = {**manifest.parents, parent: "f" * 64}
    dataclasses.replace(manifest, parents=parents).save(run_copy / "checkpoints" / "00000012")
    with pytest.raises(ContractError, match=rf"contract 'checkpoint'.*expected {parent} {'f' * 64}"):
        _ = Run.load(run_copy).params


def test_a_model_that_todays_code_would_build_otherwise_is_refused_with_what_differs(finished, monkeypatch):
    def other(config, tokenizer):
        made = model_manifest(config, tokenizer)
        return dataclasses.replace(made, facts={**made.facts, "spec_sha256": "0" * 64})

    monkeypatch.setattr(directory, "model_manifest", other)
    with pytest.raises(ContractError, match=r"contract 'model'.*they differ in spec_sha256.*version of jaxlm"):
        _ = Run.load(finished).params


# ---- what is not there -------------------------------------------------------------------------------------------


def test_no_run_is_said_with_what_makes_one(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: expected a run directory, found none there; `jaxlm train CONFIG`"):
        Run.load(tmp_path / "nowhere")
    (tmp_path / "resolved.json").write_text("{}")
    with pytest.raises(InputError, match=rf"training has not begun; `jaxlm train {tmp_path}` goes on"):
        Run.load(tmp_path)


def test_a_run_without_a_checkpoint_is_said_with_what_mends_it(run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    for part in ("step", "checkpoint", "params"):
        with pytest.raises(InputError, match=rf"expected a checkpoint, found none; `jaxlm train {run_copy}` goes on"):
            getattr(Run.load(run_copy), part)


def test_a_step_that_is_not_there_is_said_with_those_that_are(finished):
    for part in ("step", "checkpoint", "params"):
        with pytest.raises(InputError, match=r"--step: expected a checkpoint of .*tiny, which has 8, 12, found 5"):
            getattr(Run.load(finished, step=5), part)


def test_the_run_contract_holds_config_model_probes_and_parents(finished):
    run = Run.load(finished)
    facts = json.loads((finished / "manifest.json").read_text())["facts"]
    assert facts["config_fingerprint"] == config_fingerprint(run.config)
    assert Manifest.from_json(facts["model"], artifact="") == run.model
    assert len(facts["probes"]) == len((*FORWARD, *INITIAL, *UPDATE, *WHOLE)) + 2  # order and batch_is_pure
    assert all(probe["passed"] for probe in facts["probes"].values())
    assert set(run.manifest.parents) == {"tokenizer", "data"}
    assert list(run.manifest.files) == ["resolved.json"]


def test_parameters_first_asked_for_inside_of_a_traced_function_are_arrays(finished):
    run = Run.load(finished)
    double = jax.jit(lambda x: x * run.params.embed[0, 0])
    for shape in ((1,), (2,)):
        np.testing.assert_allclose(double(np.ones(shape, np.float32)), run.params.embed[0, 0], rtol=1e-6)
