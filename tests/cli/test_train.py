"""`jaxlm train`: new runs, the rest of a run, the same run again."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import pytest

import jaxlm.train
from jaxlm.cli.main import main
from jaxlm.cli.train import beside
from jaxlm.config.load import read_resolved, resolved_json
from jaxlm.run import Layout, Run

from .conftest import CONFIG, Said, listing


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A run of six steps that the command line made: its path, and what was said."""
    place = tmp_path_factory.mktemp("trained")
    (place / "template.json").write_bytes(resolved_json(config))
    (place / "mine.py").write_text(CONFIG)
    out = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out):
        status = main(["train", "--train.steps", "6", "mine.py", "--json", "--name", "mine"])
    return place / "runs" / "mine", Said(status, out.getvalue(), "")


@pytest.mark.slow
def test_a_run_goes_where_its_name_says_and_is_what_the_config_says(trained):
    path, said = trained
    body = said.json()
    assert said.status == 0
    assert (body["run"], body["step"], body["steps"]) == ("runs/mine", 6, 6)
    run = Run.load(path)
    assert body["fingerprint"] == run.manifest.fingerprint
    assert body["loss"] == run.telemetry()[-1]["loss"]
    assert body["validation"] == run.telemetry()[-1]["validation"]
    assert run.config.train.steps == 6
    assert run.config.checkpoint.every == 4


def test_a_finished_run_is_left_as_it_is_and_other_numbers_are_refused_by_name(trained, cli):
    run, _ = trained
    before = listing(run)
    for words in ((), ("--watch.print-every", "7")):
        again = cli("train", run, *words)
        assert again.status == 0
        assert "nothing is left to train" in again.out
        assert listing(run) == before
    other = cli("train", run, "--optim.lr", "1.0")
    assert other.status == 2
    assert "--optim.lr: 0.003 there, 1.0 here" in other.err
    assert listing(run) == before


def test_the_resolved_config_of_a_run_gives_the_same_run_beside_it(trained, cli):
    run, first = trained
    before = listing(run)
    said = cli("train", run / "resolved.json", "--json")
    assert said.json()["run"] == str(run.with_name("mine-2"))
    assert listing(run) == before
    again = listing(run.with_name("mine-2"))
    for name in ("telemetry.jsonl", "tokenizer/bpe.json", "data/manifest.json", "checkpoints/00000006/state/params.embed/0.0"):
        assert again[name] == before[name]
    assert said.json()["fingerprint"] == first.json()["fingerprint"]


def test_the_first_free_name_beside_a_run_is_taken(tmp_path, config, monkeypatch):
    for number, name in enumerate(("a", "a-2", "a-3", "a-05", "a-6b"), start=2):
        (tmp_path / name).mkdir()
        assert beside(tmp_path / "a", config) == tmp_path / f"a-{min(number, 4)}"
    monkeypatch.chdir(tmp_path / "a")
    assert beside(Path("."), config) == tmp_path / "a-4"


def test_an_unfinished_run_beside_is_gone_on_with_before_another_is_begun(run_copy, config):
    def begun(number, cfg=config):
        path = run_copy.with_name(f"run-{number}")
        path.mkdir()
        (path / "resolved.json").write_bytes(resolved_json(cfg))
        return path

    shutil.copytree(run_copy, run_copy.with_name("run-2"))  # finished
    assert beside(run_copy, read_resolved(run_copy / "resolved.json")).name == "run-3"
    begun(3, dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1.0)))
    begun(4).joinpath("resolved.json").write_text("{")
    assert beside(run_copy, config).name == "run-5"
    older, newer = begun(5), begun(10)
    shutil.copytree(run_copy / "checkpoints" / "00000008", older / "checkpoints" / "00000008")
    assert beside(run_copy, config) == newer
    with Layout(newer).locked():
        assert beside(run_copy, config) == older
    shutil.copytree(run_copy / "checkpoints" / "00000012", older / "checkpoints" / "00000012")
    assert beside(run_copy, config) == newer
    (newer / "resolved.json").unlink()
    assert beside(run_copy, config).name == "run-6"


def test_an_interrupted_reproduction_goes_on_where_it_stood(trained, cli, monkeypatch):
    run, _ = trained
    asked = []

    def fit(config, *, out, **_):
        asked.append(out)
        out.mkdir(exist_ok=True)
        (out / "resolved.json").write_bytes(resolved_json(config))
        raise KeyboardInterrupt(f"`jaxlm train {out}` goes on")

    monkeypatch.setattr(jaxlm.train, "fit", fit)
    for _ in range(2):
        said = cli("train", run / "resolved.json")
        assert (said.status, said.err) == (3, f"jaxlm: interrupted; `jaxlm train {asked[0]}` goes on\n")
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("nowhere.py",), ["nowhere.py", "configs/tiny.py"]),
        (("../folder",), ["folder", "resolved.json"]),
        (("../folder/notes.txt",), ["notes.txt", ".py"]),
        (("../folder/broken.py",), ["broken.py, line 1", "ZeroDivisionError"]),
        (("../folder/none.py",), ["none.py", "config()"]),
        (("tiny", "--train.steps", "0"), ["--train.steps", ">= 1"]),
        (("tiny", "--train.steps", "1", "--train.steps", "2"), ["--train.steps", "once"]),
        (("tiny", "--data.path", "nowhere"), ["--tokenizer.path"]),
        (("tiny", "--mesh.data", "16", "--train.batch-size", "16"), ["--mesh.data", "16"]),
        (("tiny", "--watch.metrics-port", "65536"), ["--watch.metrics-port", "at most 65535"]),
        (("tiny", "--watch.stop-at", "los_spike"), ["--watch.stop-at", "found los_spike; the nearest is loss_spike"]),
        (("tiny", "--watch.skip-at", "validation_gap"), ["--watch.skip-at", "found validation_gap"]),
        (("tiny", "--watch.rollback-at", "loss_spike,foo"), ["--watch.rollback-at", "found foo"]),
    ],
)
def test_configs_that_cannot_be_are_named_and_nothing_is_created(cli, tmp_path, words, names):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in {"notes.txt": "", "broken.py": "1 / 0", "none.py": "x = 1"}.items():
        (folder / name).write_text(text)
    said = cli("train", *words)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert all(name in said.err for name in names), said.err
    assert list((tmp_path / "here").iterdir()) == []


def test_damaged_telemetry_stops_a_resume_in_plain_words(cli, run_copy):
    path = run_copy / "telemetry.jsonl"
    shutil.rmtree(run_copy / "checkpoints" / "00000012")
    lines = path.read_bytes().splitlines(keepends=True)
    broken = [*lines[:4], lines[4].replace(b": ", b":\t", 1), *lines[5:]]
    for content, found in (
        (broken, "a line 5 that does not continue the 4 before it"),
        (lines[:6], "6 lines"),
        ([], "0 lines"),
    ):
        path.write_bytes(b"".join(content))
        said = cli("train", run_copy)
        assert said.status == 1
        message = said.err.splitlines()[-1]
        assert message.count(str(path)) == 1
        wanted = f"telemetry.jsonl: expected the 8 lines that the checkpoint has seen, found {found}. Restore it from a copy"
        assert wanted in message


def test_a_config_read_back_is_the_one_that_was_given(trained, config):
    resolved = read_resolved(trained[0] / "resolved.json")
    assert resolved.optim == config.optim
    assert resolved.data == config.data
