"""Exit statuses, one line on standard error, one object on standard output; help without jax; a user's mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.checkpoint import SaveError
from jaxlm.cli import check
from jaxlm.cli.main import VERBS
from jaxlm.run import Layout
from jaxlm.tokenizer import Tokenizer

from .conftest import listing

HELP = """
import sys
from jaxlm.cli.main import main
status = main(sys.argv[1:])
heavy = sorted(name for name in ("jax", "numpy", "orbax", "flax", "numba", "tyro") if name in sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


def process(*words, **environment):
    command = [sys.executable, "-m", "jaxlm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80", **environment})


# ---- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_help_of_every_verb_fits_80_columns_and_imports_nothing_heavy(verb):
    words = [verb, "--help"] if verb else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *words], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"usage: jaxlm {verb or 'VERB'}")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert "--json" in done.stdout


def test_no_words_at_all_show_the_verbs(cli):
    said = cli()
    assert said.status == 0
    assert all(f"  {verb} " in said.out for verb in VERBS)
    assert cli("--help").out == said.out
    assert cli("--version").out.startswith("jaxlm 0.")


# ---- exit status and what is said --------------------------------------------------------------------------------


def one_line(said, *names):
    """One line on standard error, nothing on standard output."""
    assert said.out == ""
    assert said.err.startswith("jaxlm: error: ")
    assert said.err.count("\n") == 1
    for name in names:
        assert name in said.err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["tran"], ["tran", "`jaxlm train`"]),
        (["xyzzy"], ["the verbs are quickstart, tokenizer"]),
        (["generate", "run", "--tmperature", "1"], ["--tmperature", "the nearest is --temperature"]),
        (["eval", "run", "--stp", "1"], ["--stp", "the nearest is --step"]),
        (["eval", "run", "--eval.strid", "1"], ["--eval.strid", "the nearest is --eval.stride"]),
        (["check", "run", "--jso"], ["--jso", "the nearest is --json"]),
        (["train", "configs/tiny.py", "--n-layers", "4"], ["--n-layers", "the nearest is --model.n-layers"]),
        (["train", "configs/tiny.py", "--model.n-layers", "x"], ["--model.n-layers", "an integer", "'x'"]),
        (["generate", "run", "--step", "abc"], ["--step: expected an integer, found 'abc'"]),
        (["generate", "run", "--top-p", "most"], ["--top-p: expected a number, found 'most'"]),
        (["generate", "run", "two"], ["two: expected nothing more"]),
        (["generate", "run", "--prompt", "a\udcff"], ["expected words in UTF-8", r"a\xff"]),
        (["check"], ["PATH", "`jaxlm check --help`"]),
        (["tokenizer", "eat"], ["action", "'eat'", "train"]),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_nearest_in_one_line(cli, words, names):
    said = cli(*words)
    assert said.status == 2
    one_line(said, *names)


def test_a_misspelt_field_is_one_line_without_a_traceback_and_nothing_is_created(tmp_path):
    command = [sys.executable, "-m", "jaxlm", "train", "configs/tiny.py", "--model.n-layer", "4"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "n-layers" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_done_is_0_broken_is_1_and_interrupted_is_3(cli, finished, run_copy, monkeypatch):
    assert process("check", finished, "--quiet").returncode == 0
    (run_copy / "events.jsonl").write_text("x\n")
    assert process("check", run_copy, "--quiet").returncode == 1

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupted)
    assert cli("check", finished)[::2] == (3, "jaxlm: interrupted\n")


def test_an_interrupted_training_says_how_it_goes_on(cli, tiny, monkeypatch):
    import jaxlm.train

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxlm.train, "fit", interrupted)
    said = cli("train", tiny, "--json")
    assert said.status == 3
    assert "the same command goes on" in said.err
    assert said.json()["error"]["kind"] == "interrupted"


def test_a_failed_save_exits_with_1_and_says_what_is_durable(cli, tiny, monkeypatch, tmp_path):
    import jaxlm.train

    def full(*_, **__):
        raise SaveError(tmp_path / "00000008", 8, OSError("disk full"), durable=4, bytes_needed=10)

    monkeypatch.setattr(jaxlm.train, "fit", full)
    said = cli("train", tiny, "--json")
    assert said.status == 1
    assert "Last durable step: 4" in said.err
    assert said.json()["error"]["kind"] == "save"


def test_a_fault_of_the_program_is_not_hidden(cli, monkeypatch):
    def fault(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(check, "run", fault)
    with pytest.raises(ZeroDivisionError):
        cli("check", "run")


@pytest.mark.parametrize("words", [["tran"], ["check", "no"], ["train", "no.py"], ["eval", "no"], ["data", "show"]])
def test_errors_are_one_object_with_json(cli, words):
    said = cli(*words, "--json")
    assert said.status == 2
    error = said.json()["error"]
    assert error["kind"] == "input"
    assert " ".join(error["message"].split()) in said.err


def test_a_broken_contract_is_one_object_with_json(cli, run_copy):
    (run_copy / "resolved.json").write_text("{}")
    said = cli("generate", run_copy, "--json")
    assert said.status == 1
    assert said.json()["error"]["kind"] == "contract"
    assert "resolved.json" in said.json()["error"]["message"]


def test_warnings_are_one_line_and_the_callers_way_of_warning_is_left_alone(cli, monkeypatch):
    import warnings

    before = warnings.showwarning
    monkeypatch.setattr(check, "run", lambda args, out: warnings.warn("look here", stacklevel=1))
    said = cli("check", "run")
    assert (said.status, said.err) == (0, "jaxlm: warning: look here\n")
    assert warnings.showwarning is before


@pytest.mark.parametrize("words", ["check {run}", "check {run} --quiet --json", "--help", "data show {run}/data"])
def test_a_closed_pipe_ends_quietly_and_is_no_success(finished, words):
    command = f"set -o pipefail; {sys.executable} -m jaxlm {words.format(run=finished)} | (exec <&-; sleep 0)"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # argparse swallows what goes wrong while it writes
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=buffered)
    assert (done.returncode, done.stdout) == (1, "")
    assert not any(word in done.stderr for word in ("Traceback", "Error", "Exception"))
    assert (done.stderr == "") == ("--json" not in words)


# ---- mistakes: no traceback, and nothing half-written -------------------------------------------------------------


def damaged(run: Path, name: str, change) -> Path:
    path = run / name
    path.write_bytes(change(path.read_bytes()))
    return path


def swap_tokenizer(run: Path) -> None:
    mine = Tokenizer.load(run / "tokenizer")
    shutil.rmtree(run / "tokenizer")
    Tokenizer(mine.merges, ("<|end|>",), mine.pattern).save(run / "tokenizer")


DAMAGES = {
    "truncated shard": (lambda run: damaged(run, "data/val-00000.bin", lambda b: b[:-1]), "val-00000.bin"),
    "swapped tokenizer": (swap_tokenizer, "tokenizer"),
    "damaged checkpoint": (
        lambda run: damaged(run, "checkpoints/00000012/state/params.embed/0.0", lambda b: b"\x01" + b[1:]),
        "params/embed",
    ),
}


@pytest.mark.parametrize("verb", ["eval", "generate", "train"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_by_every_verb_that_needs_it(cli, run_copy, verb, damage):
    make, names = DAMAGES[damage]
    make(run_copy)
    before = listing(run_copy)
    said = cli(verb, run_copy)
    needed = not (verb == "generate" and damage == "truncated shard")
    assert (said.status == 1) == needed
    assert (names in said.err) == needed
    assert listing(run_copy) == before


@pytest.mark.parametrize("verb", ["eval", "generate"])
def test_a_step_that_is_not_there_is_a_mistake_of_the_user(cli, finished, verb):
    said = cli(verb, finished, "--step", "5")
    assert said.status == 2
    one_line(said, "--step", "8, 12", "found 5")


def test_a_run_in_use_is_refused(cli, run_copy, tiny):
    before = listing(run_copy)
    with Layout(run_copy).locked():
        said = cli("train", tiny, "--out", run_copy)
    assert said.status == 2
    one_line(said, "in use by process", "--out")
    assert listing(run_copy) == before


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--data.source", "nowhere.txt"], ["--data.source", "nowhere.txt"]),
        (["--data.source", "../texts/empty"], ["--data.source", "no document that is not empty"]),
        (["--data.source", "../texts/bad", "--data.strict"], ["0.txt", "expected UTF-8", "0xff at offset 2"]),
        (["--tokenizer.vocab-size", "256"], ["--tokenizer.vocab-size", ">= 257", "256"]),
        (["--model.n-heads", "3"], ["--model.n-heads", "a divisor of --model.d-model 32"]),
        (["--tokenizer.path", "nowhere"], ["nowhere", "tokenizer"]),
        (["--out", "../texts/bad/0.txt"], ["0.txt", "directory"]),
        (["--out", "../texts"], ["texts", "expected a run or an empty directory", "--out"]),
    ],
)
def test_a_training_that_cannot_begin_leaves_nothing_half_written(cli, tiny, tmp_path, words, names):
    texts = {f"few/{i}.txt": b"%d" % i for i in range(30)} | {"empty/a.txt": b"", "bad/0.txt": b"a \xff b"}
    for name, content in texts.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = listing(tmp_path)
    said = cli("train", tiny, "--data.val-fraction", "0.3", *words)
    assert said.status == 2
    assert said.err.startswith("jaxlm: error: ")
    assert said.err.count("\n") == 1
    assert all(name in said.err for name in names), said.err
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_what_a_batch_does_not_fit_into_is_kept_whole_for_one_that_fits(cli, tiny, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(str(number))
    said = cli("train", tiny, "--data.val-fraction", "0.3", "--data.source", "../texts", "--tokenizer.vocab-size", "257")
    assert said.status == 2
    assert all(name in said.err for name in ("--train.batch-size", "rows of 32 tokens"))
    assert cli("check", "runs/tiny/tokenizer", "runs/tiny/data").status == 0
    assert [name for name in listing(tmp_path / "here") if ".tmp" in name or "checkpoints" in name] == []
    assert cli("train", "runs/tiny", "--train.batch-size", "1", "--train.steps", "4").status == 0


def test_a_directory_that_may_not_be_written_is_a_mistake_of_the_user(cli, tiny, monkeypatch, tmp_path):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    before = listing(tmp_path)
    monkeypatch.setattr(os, "mkdir", denied)
    train_tokenizer = ["tokenizer", "train", "--out", "tok", "--data.max-bytes", "2000", "--tokenizer.vocab-size", "257"]
    for words in (["train", tiny, "--out", "run"], train_tokenizer):
        said = cli(*words)
        assert said.status == 2
        assert "Permission denied" in said.err
        assert said.err.count("\n") == 1
    assert listing(tmp_path) == before


def test_the_prompt_is_shown_only_when_the_engine_has_taken_it(cli, finished):
    said = cli("generate", finished, "--prompt", "x" * 100)
    assert said.status == 2
    one_line(said, "101 tokens", "context 32")
