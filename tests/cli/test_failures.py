"""What an exception means at the command line: full disks, platforms that are not there, memory that is not enough."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import jax
import pytest

from jaxlm.cli import check, generate
from jaxlm.cli.failures import failure_of
from jaxlm.contract import write_atomic
from jaxlm.watch import ChainedLog

from .conftest import listing

OOM = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.\nBufferAssignment: ..."


def raising(error):
    def run(*_, **__):
        raise error

    return run


def one_line(said, *names):
    assert said.out == ""
    assert said.err.startswith("jaxlm: error: ")
    assert said.err.count("\n") == 1
    for name in names:
        assert name in said.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("path", [None, "here/shard.bin"])
def test_a_full_disk_is_a_failed_save_in_one_line(cli, monkeypatch, number, path):
    monkeypatch.setattr(check, "run", raising(OSError(number, os.strerror(number), path)))
    said = cli("check", "run")
    assert said.status == 1
    one_line(said, path or "the disk", "expected room", os.strerror(number), "free some space; then give the same command")
    assert cli("check", "run", "--json").json()["error"]["kind"] == "save"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_a_log_or_an_atomic_write_names_the_file(cli, monkeypatch, tmp_path):
    log = ChainedLog(tmp_path / "log")
    monkeypatch.setattr(os, "fsync", full)
    for write in (log.sync, lambda: write_atomic(tmp_path / "new", b"x")):
        monkeypatch.setattr(check, "run", lambda *_, write=write: write())
        one_line(cli("check", "run"), str(tmp_path / ("log" if write == log.sync else "new")), "No space left")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "log"]


@pytest.mark.parametrize("verb", ["data", "tokenizer"])
def test_a_disk_that_fills_up_while_an_artifact_is_made_leaves_nothing_and_says_what_mends_it(
    cli, finished, monkeypatch, tmp_path, verb
):
    words = {
        "data": ["build", "--tokenizer", finished / "tokenizer", "--data.val-fraction", "0.3"],
        "tokenizer": ["train", "--tokenizer.vocab-size", "257"],
    }[verb]
    before = listing(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    said = cli(verb, *words, "--data.max-bytes", "50000", "--out", "made")
    assert said.status == 1
    one_line(said, "made/", "No space left", "another place with --out")
    assert listing(tmp_path) == before
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(("words", "status"), [("check nowhere --json", 2), ("--help", 1), ("data show {data}", 1)])
def test_an_output_that_is_full_is_one_line(finished, words, status):
    command = [sys.executable, "-m", "jaxlm", *words.format(data=finished / "data").split()]
    with open("/dev/full", "w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""}
        )
    assert done.returncode == status
    assert done.stderr.count("\n") == 1


def test_other_errors_of_the_system_that_name_no_file_are_faults_of_the_program():
    assert failure_of(OSError(errno.EINVAL, "Invalid argument"), "check") is None
    assert failure_of(AssertionError(), "check") is None
    assert failure_of(RuntimeError("anything"), "check") is None


def test_a_name_that_the_locale_does_not_know_is_a_mistake_of_the_user(monkeypatch):
    error = UnicodeEncodeError("ascii", "na\u00efve", 2, 3, "ordinal not in range(128)")
    assert failure_of(error, "check") is None
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    failure = failure_of(error, "check")
    assert failure.status == 2
    assert failure.message.endswith(r"found 'na\xefve' where the locale knows ascii only; set PYTHONUTF8=1")


def test_another_place_is_advised_where_there_is_an_option_for_it():
    error = OSError(errno.ENOSPC, "No space left on device", "made/bpe.json")
    for verb, options, expected in (("tokenizer", ["out"], True), ("tokenizer", ["numpy"], False), ("train", (), True)):
        assert ("another place with --out" in failure_of(error, verb, options).message) == expected


def test_memory_that_is_not_enough_names_what_needs_less(cli, finished, tiny, monkeypatch):
    import jaxlm.train

    monkeypatch.setattr(jaxlm.train, "fit", raising(jax.errors.JaxRuntimeError(OOM)))
    said = cli("train", tiny)
    assert said.status == 1
    one_line(said, "8589934592 bytes", "--train.batch-size", "--train.grad-accum", "--model.d-model")
    assert "BufferAssignment" not in said.err
    monkeypatch.setattr(generate, "run", raising(jax.errors.JaxRuntimeError(OOM)))
    one_line(cli("generate", finished), "--max-new-tokens")
    assert cli("generate", finished, "--json").json()["error"]["kind"] == "memory"


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
@pytest.mark.parametrize("filtering", ["off", "remove_frames"])
def test_a_platform_that_is_not_there_is_a_mistake_that_names_the_variable(tmp_path, platform, filtering):
    environment = {**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": "-1", "JAX_TRACEBACK_FILTERING": filtering}
    command = [sys.executable, "-m", "jaxlm", "train", "tiny", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert last.startswith(f"jaxlm: error: JAX_PLATFORMS={platform}: expected a platform of this machine, found ")
    assert last.endswith("unset JAX_PLATFORMS, or set it to cpu")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
