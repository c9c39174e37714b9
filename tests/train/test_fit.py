"""The host loop: what a run leaves on the disk, how it goes on, and what it refuses."""

import dataclasses
import functools
import importlib
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.config.load import read_resolved
from jaxlm.contract import ContractError, InputError
from jaxlm.data import TokenStream
from jaxlm.run import Run, audit
from jaxlm.train import fit
from jaxlm.train.probes_forward import FORWARD
from jaxlm.train.probes_initial import INITIAL
from jaxlm.train.probes_update import UPDATE
from jaxlm.train.probes_whole import WHOLE
from jaxlm.watch import ChainedLog, Mark
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
    assert {r["repeated_rows"] for r in records} == {0.0}
    probes = run.manifest.facts["probes"]
    assert len(probes) == len((*FORWARD, *INITIAL, *UPDATE, *WHOLE)) + 2  # order and batch_is_pure
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


OTHERWISE = {
    "began anew": ("jaxlm.train.session.batch", lambda real: lambda stream, **k: real(stream, **{**k, "step": k["step"] % 7})),
    "one further": ("jaxlm.train.session.batch", lambda real: lambda stream, **k: real(stream, **{**k, "step": k["step"] + 1})),
    "another seed": ("jaxlm.data.batches.permute", lambda real: lambda i, n, *, seed, epoch: real(i, n, seed=9, epoch=epoch)),
    "another packing": ("jaxlm.data.batches.rows_of", lambda real: lambda s, rows, length: real(s, rows, length)._replace(
        positions=np.zeros((len(rows), length), np.int32))),
    "another place": ("jaxlm.data.TokenStream.slice", lambda real: lambda self, begin, end: real(self, begin - 1, end - 1)),
}  # fmt: skip


@pytest.fixture(scope="module")
def stub(finished):
    """What a resumed session knows of its batches."""
    run = Run.load(finished)
    session = importlib.import_module("jaxlm.train.session").Session
    stub = SimpleNamespace(cfg=run.config, parts=run, layout=run.layout, telemetry=SimpleNamespace(mark=Mark(STEPS, "")))
    stub.history = run.history()
    stub._batch, stub.batch = (functools.partial(getattr(session, name), stub) for name in ("_batch", "batch"))
    stub.require_same_batches = functools.partial(session.require_same_batches, stub)
    return stub


@pytest.mark.parametrize("kind", OTHERWISE)
def test_batches_that_come_out_as_others_are_refused(stub, kind, monkeypatch):
    stub.require_same_batches()
    name, fault = OTHERWISE[kind]
    place, attribute = name.rsplit(".", 1)
    owner = TokenStream if place.endswith("TokenStream") else importlib.import_module(place)
    monkeypatch.setattr(owner, attribute, fault(getattr(owner, attribute)))
    with pytest.raises(ContractError, match=r"telemetry\.jsonl line 12: expected the batch of step 12 again, CRC .* found CRC"):
        stub.require_same_batches()


def test_a_run_that_has_not_begun_and_one_without_crcs_are_no_other(stub, tmp_path, monkeypatch):
    path = tmp_path / "telemetry.jsonl"
    with ChainedLog(path) as log:
        monkeypatch.setattr(stub, "telemetry", log)
        monkeypatch.setattr(stub, "layout", SimpleNamespace(telemetry=path))
        stub.require_same_batches()
        log.append({"step": 1, "loss": 2.0})
        stub.require_same_batches()


def test_a_resume_with_other_batches_is_refused_before_its_first_step(halted, config, monkeypatch):
    _, fault = OTHERWISE["another seed"]
    batches = importlib.import_module("jaxlm.data.batches")
    monkeypatch.setattr(batches, "permute", fault(batches.permute))
    with pytest.raises(ContractError, match="expected the batch of step 8 again"):
        fit(config, out=halted, say=quiet)


def moments_anew(state):
    *before, adam = state.opt_state
    adam = dataclasses.replace(adam, mu=jax.tree.map(lambda leaf: leaf * 0, adam.mu))
    return dataclasses.replace(state, opt_state=(*before, adam))


@pytest.mark.parametrize("where", ["as it is opened", "by what runs before the first step"])
def test_a_restored_state_that_is_changed_before_the_first_step_is_refused(where, halted, config, monkeypatch):
    loop, session = (importlib.import_module(f"jaxlm.train.{name}") for name in ("loop", "session"))
    standing, probe = session.Session.standing, loop.probe

    def opened(self, allow_older=False):
        state, mark = standing(self, allow_older)
        return moments_anew(state), mark

    def probed(session):
        results = probe(session)
        session.state = moments_anew(session.state)
        return results

    if where == "as it is opened":
        monkeypatch.setattr(session.Session, "standing", opened)
    else:
        monkeypatch.setattr(loop, "probe", probed)
    before = (halted / "checkpoints" / "00000008" / "manifest.json").read_bytes()
    with pytest.raises(ContractError, match=r"'restored' is broken at .*00000008: .* found another in opt_state/.*mu"):
        fit(config, out=halted, say=quiet)
    assert len(Run.load(halted).telemetry()) == 8
    assert (halted / "checkpoints" / "00000008" / "manifest.json").read_bytes() == before


def test_another_environment_is_said_field_by_field(halted, config, monkeypatch):
    session = importlib.import_module("jaxlm.train.session")
    real = session.environment_of
    monkeypatch.setattr(session, "environment_of", lambda *a, **k: {**real(*a, **k), "jax": "0.0.1"})
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


@pytest.mark.slow
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
        fit(replaced(tiny_config(), "data", order_seed=7), out=tmp_path / "other", like=original, say=quiet)


@pytest.fixture
def small(config, tmp_path):
    """A config on a corpus of its own, of a few rows."""
    text = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"{word} and some more words, so that merges are found {word} {word}"}) for word in range(40)]
    text.write_text("\n".join(lines))
    data = schema.DataConfig(source=(str(text),), val_fraction=0.2)
    return dataclasses.replace(replaced(config, "train", steps=4), tokenizer=schema.TokenizerConfig(vocab_size=260), data=data)


@pytest.mark.slow
def test_a_mistake_before_the_first_step_does_not_stand_in_the_way_of_the_mended_config(small, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"--train.batch-size: expected at most the \d+ rows"):
        fit(replaced(small, "train", batch_size=2000), out=out, say=quiet)
    made = (out / "tokenizer" / "bpe.json").stat()
    assert not (out / "manifest.json").exists()
    run = fit(small, out=out, say=quiet)
    assert run.config.train.batch_size == 4
    kept = (out / "tokenizer" / "bpe.json").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # what was made is not made again
    assert [finding for finding in audit(out) if not finding.kept] == []


@pytest.mark.slow
def test_other_data_before_the_first_step_makes_tokenizer_and_data_anew(small, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"--train.batch-size"):
        fit(replaced(small, "train", batch_size=2000), out=out, say=quiet)
    run = fit(replaced(small, "tokenizer", vocab_size=258), out=out, say=quiet)
    assert run.tokenizer.vocab_size == 258
    assert run.data.manifest.facts["vocab_size"] == 258


def test_a_mistake_before_anything_was_made_leaves_nothing(small, tmp_path):
    for wrong in (replaced(small, "data", source=("nowhere.txt",)), replaced(small, "tokenizer", vocab_size=5000)):
        with pytest.raises(InputError):
            fit(wrong, out=tmp_path / "run", say=quiet)
        assert not (tmp_path / "run").exists()


def test_sources_are_found_again_from_another_directory(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(replaced(small, "data", source=("corpus.jsonl",)), out="run", say=quiet)
    assert run.config.data.source == (str(tmp_path / "corpus.jsonl"),)


@pytest.mark.slow
def test_a_run_goes_on_without_the_tokenizer_that_it_was_given(small, tmp_path):
    given = fit(small, out=tmp_path / "first", say=quiet).path / "tokenizer"
    cfg = dataclasses.replace(small, tokenizer=schema.TokenizerConfig(path=str(given)))
    run = fit(cfg, out=tmp_path / "second", say=quiet)
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(run.path / "checkpoints" / "00000004")
    assert fit(cfg, out=run.path, say=quiet).step == 4


def test_an_event_log_with_a_changed_line_stops_the_resume(halted, config):
    path = halted / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"probes"', b'"proves"', 1))
    before = path.read_bytes()
    with pytest.raises(ContractError, match=r"events.jsonl.*a whole log"):
        fit(config, out=halted, say=quiet)
    assert path.read_bytes() == before


def test_the_step_of_an_opened_run_stays_when_a_newer_checkpoint_comes(finished, run_copy):
    newest = run_copy / "checkpoints" / f"{STEPS:08d}"
    shutil.rmtree(newest)
    run = Run.load(run_copy)
    assert run.step == 8
    shutil.copytree(finished / "checkpoints" / newest.name, newest)
    assert run.step == run.checkpoint.facts["step"] == 8


def test_a_gpu_without_deterministic_sums_promises_no_equal_bits(halted, config, monkeypatch):
    session = importlib.import_module("jaxlm.train.session")
    real = session.environment_of
    monkeypatch.setattr(session, "environment_of", lambda *a, **k: {**real(*a, **k), "deterministic": False})
    said = []
    fit(config, out=halted, say=said.append)
    assert any("xla_gpu_deterministic_ops" in line for line in said)


def test_a_directory_that_is_no_run_is_left_alone(config, tmp_path):
    kept = [tmp_path / name for name in ("notes.txt", ".mine.tmp", ".tokenizer.12345678.tmp")]
    for path in kept:
        path.write_text("mine")
    with pytest.raises(InputError, match=r"expected a run or an empty directory, found"):
        fit(config, out=tmp_path, say=quiet)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.slow
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
