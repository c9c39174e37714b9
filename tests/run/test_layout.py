"""Where the parts of a run lie, and the lock that keeps a second process out."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError
from jaxlm.run import Layout
from jaxlm.run import layout as module

HOLD = """
import sys
from jaxlm.run.layout import Layout
from pathlib import Path
with Layout(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a run, and the run's layout."""
    layout = Layout(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(layout.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process, layout
        process.kill()


def test_every_part_lies_below_the_run_but_data_may_lie_elsewhere():
    layout, config = Layout(Path("runs/a")), RunConfig()
    names = ("manifest", "resolved", "tokenizer", "telemetry", "events", "checkpoints", "evaluations")
    assert [getattr(layout, name).as_posix() for name in names] == [
        "runs/a/manifest.json",
        "runs/a/resolved.json",
        "runs/a/tokenizer",
        "runs/a/telemetry.jsonl",
        "runs/a/events.jsonl",
        "runs/a/checkpoints",
        "runs/a/evaluations",
    ]
    assert layout.data(config) == Path("runs/a/data")
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, path="/shards"))
    assert layout.data(elsewhere) == Path("/shards")


def test_a_run_in_use_by_another_process_is_refused_and_the_process_is_named(holder):
    process, layout = holder
    assert layout.in_use()
    with pytest.raises(InputError, match=rf"run: .* in use by process {process.pid}; .*--out"), layout.locked():
        pass


def test_the_lock_goes_with_its_process_however_that_ends(holder):
    process, layout = holder
    process.kill()
    process.wait()
    assert not layout.in_use()
    with layout.locked():
        assert layout.in_use()
        assert (layout.path / ".lock").read_text() == f"process {os.getpid()}"
    assert not layout.in_use()


def test_looking_whether_a_run_is_in_use_creates_nothing(tmp_path):
    assert not Layout(tmp_path / "none").in_use()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file_is_refused_with_what_mends_it(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(InputError, match=rf"{path}: expected a directory .*choose another"),
            Layout(path).locked(),
        ):
            pass
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def flock(monkeypatch):
    """Let locking raise these errors, one a call, before it works; returns the pauses that were made."""
    pauses, works = [], fcntl.flock

    def raising(*errors):
        left = list(errors)

        def answer(*arguments):
            if left:
                raise left.pop(0)
            return works(*arguments)

        monkeypatch.setattr(fcntl, "flock", answer)
        monkeypatch.setattr(module.time, "sleep", pauses.append)
        return pauses

    return raising


BUSY = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_one_that_only_looks_whether_a_run_is_in_use_keeps_nobody_out(tmp_path, flock):
    pauses = flock(BUSY, BUSY, BUSY)
    with Layout(tmp_path / "run").locked():
        assert len(pauses) == 4
    assert 0.1 < sum(pauses) < 0.5
    pauses = flock(*[BUSY] * 1000)
    with pytest.raises(InputError, match="in use by process"), Layout(tmp_path / "run").locked():
        pass
    assert 0.3 < sum(pauses) < 1


def test_a_file_system_that_cannot_lock_is_refused_with_what_mends_it_and_holds_no_run_in_use(tmp_path, flock):
    flock(OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOLCK, "No locks available"))
    path = tmp_path / "run"
    message = rf"^{path}: expected a file system that can lock a file, found: No locks available; .* --out$"
    with pytest.raises(InputError, match=message), Layout(path).locked():
        pass
    assert not Layout(path).in_use()
