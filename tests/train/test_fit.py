"""The host loop: what a run leaves on the disk, how it goes on, and what it refuses."""

import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.config.load import read_resolved
from jaxlm.contract import ContractError, InputError
from jaxlm.run import Run, audit
from jaxlm.train import fit
from tests.conftest import tiny_config

STEPS = 12


def quiet(line):
    pass


def replaced(cfg, section, **fields):
    return dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **fields)})


@pytest.fixture
def halted(run_copy):
    """The finished run as it was four steps before its end, with the telemetry of the steps that are to be repeated."""
    shutil.rmtree(run_copy / "checkpoints" / f"{STEPS:08d}")
    shutil.rmtree(run_copy / "evaluations")
    return run_copy


def test_a_run_holds_its_steps_its_validations_and_its_probes(finished):
    run = Run.load(finished)
    records = run.telemetry()
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(r["finite"] and r["skipped"] == 0 and r["labels"] > 0 for r in records)
    assert [r["step"] for r in records if "validation" in r] == [4, 8, 12]
    assert len({r["batch_crc"] for r in records}) == STEPS
    probes = run.manifest.facts["probes"]
    assert len(probes) == 12
    assert all(probe["passed"] for probe in probes.values())
    assert [e["event"] for e in run.events()][:2] == ["start", "probes"]
    assert run.events()[-1]["event"] == "end"
    assert run.checkpoints.steps() == [8, 12]


def test_a_finished_run_is_left_as_it_is(run_copy, config):
    before = (run_copy / "telemetry.jsonl").read_bytes()
    said = []
    assert fit(config, out=run_copy, say=said.append).step == STEPS
    assert (run_copy / "telemetry.jsonl").read_bytes() == before
    assert any("nothing is left to train" in line for line in said)


def test_a_resumed_run_repeats_the_steps_bit_by_bit(halted, config, finished):
    said = []
    run = fit(config, out=halted, say=said.append)
    assert (halted / "telemetry.jsonl").read_bytes() == (finished / "telemetry.jsonl").read_bytes()
    assert run.checkpoint.facts["leaves"] == Run.load(finished).checkpoint.facts["leaves"]
    assert any("resuming at step 8" in line for line in said)
    assert not any("another environment" in line for line in said)


def test_a_damaged_checkpoint_is_refused_and_an_older_one_taken_when_asked_for(run_copy, config, finished):
    damaged = next((run_copy / "checkpoints" / f"{STEPS:08d}" / "state").glob("params.blocks.wq/*"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(ContractError, match=r"params/blocks/wq.*--allow-older` takes step 8"):
        fit(config, out=run_copy, say=quiet)
    with pytest.warns(UserWarning, match="params/blocks/wq"):
        run = fit(config, out=run_copy, say=quiet, allow_older=True)
    assert run.checkpoint.facts["leaves"] == Run.load(finished).checkpoint.facts["leaves"]
    shutil.rmtree(run_copy / "evaluations")
    assert [finding for finding in audit(run_copy) if not finding.kept] == []


def test_another_environment_is_said_field_by_field(halted, config, monkeypatch):
    loop = importlib.import_module("jaxlm.train.fit")
    real = loop.environment
    monkeypatch.setattr(loop, "environment", lambda **k: {**real(**k), "jax": "0.0.1"})
    said = []
    fit(config, out=halted, say=said.append)
    assert any("another environment" in line and "jax: saved" in line and "now 0.0.1" in line for line in said)


def test_telemetry_that_lost_a_step_before_the_checkpoint_stops_the_resume(halted, config):
    path = halted / "telemetry.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    with pytest.raises(ContractError, match="the 8 lines that the checkpoint has seen"):
        fit(config, out=halted, say=quiet)


def test_a_run_is_never_continued_with_other_numbers(halted, config):
    with pytest.raises(InputError, match=r"--optim.lr: 0.003 there, 0.5 here"):
        fit(replaced(config, "optim", lr=0.5), out=halted, say=quiet)
    fit(replaced(config, "checkpoint", every=100), out=halted, say=quiet)  # changes no number


@pytest.mark.parametrize("part", ["tokenizer", "data"])
def test_a_part_swapped_for_another_of_its_kind_stops_the_resume(halted, config, part, tmp_path):
    other = fit(replaced(tiny_config(steps=4), "data", max_bytes=150_000), out=tmp_path / "other", say=quiet)
    if part == "tokenizer":
        from jaxlm.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(halted / "tokenizer")
        shutil.rmtree(halted / "tokenizer")
        Tokenizer.from_merges([*tokenizer.merges[:-1], (b"q", b"z")], tokenizer.special_tokens).save(halted / "tokenizer")
    else:
        shutil.rmtree(halted / "data")
        shutil.copytree(other.path / "data", halted / "data")
    with pytest.raises(ContractError, match=part):
        fit(config, out=halted, say=quiet)


def test_a_reproduction_compares_tokenizer_and_data_with_the_original(finished, tmp_path):
    original = Run.load(finished)
    again = fit(read_resolved(finished / "resolved.json"), out=tmp_path / "again", like=original, say=quiet)
    assert (again.path / "telemetry.jsonl").read_bytes() == (finished / "telemetry.jsonl").read_bytes()
    assert again.manifest.fingerprint == original.manifest.fingerprint
    with pytest.raises(ContractError, match="data of the run to reproduce"):
        fit(replaced(tiny_config(), "data", max_bytes=190_000), out=tmp_path / "other", like=original, say=quiet)


def test_a_mistake_leaves_nothing_and_the_mended_config_can_follow(config, tmp_path):
    text = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"{word} and some more words, so that merges are found {word} {word}"}) for word in range(40)]
    text.write_text("\n".join(lines))
    small = dataclasses.replace(
        config,
        tokenizer=schema.TokenizerConfig(vocab_size=260),
        data=schema.DataConfig(source=(str(text),), val_fraction=0.2),
    )
    with pytest.raises(InputError, match=r"--train.batch-size: expected at most the \d+ rows"):
        fit(replaced(small, "train", batch_size=2000), out=tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()
    fit(replaced(small, "train", steps=4), out=tmp_path / "run", say=quiet)


def test_a_directory_that_is_no_run_is_left_alone(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected a run or an empty directory, found notes.txt"):
        fit(config, out=tmp_path, say=quiet)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_diverges_stops_with_its_last_durable_step_and_finite_parameters(config, tmp_path):
    cfg = dataclasses.replace(
        replaced(replaced(config, "train", max_skipped=2), "model", norm="none"),
        optim=schema.OptimConfig(lr=1e6, warmup_steps=12, weight_decay=0.0),
    )
    with pytest.raises(ContractError, match=r"2 steps in a row .*last durable step is") as caught:
        fit(cfg, out=tmp_path / "run", say=quiet)
    assert caught.value.contract == "step"
    run = Run.load(tmp_path / "run")
    assert run.telemetry()[-1]["skipped"] == 2
    assert not run.telemetry()[-1]["finite"]
    assert [e["event"] for e in run.events() if e["event"] == "skipped"] == ["skipped"] * 2
    for step in run.checkpoints.steps():
        assert np.isfinite(np.asarray(Run.load(run.path, step=step).params.embed)).all()
