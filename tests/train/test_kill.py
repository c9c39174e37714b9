"""SIGKILL at any moment, also during a save: the resumed run is bit by bit the unbroken one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.load import resolved_json
from jaxlm.run import Run, audit
from jaxlm.train import fit
from tests.conftest import tiny_config

STEPS, EVERY = 120, 4
PATIENCE = 240.0  # seconds until a process that hangs is an error


@pytest.fixture(scope="module")
def cfg():
    """Saves follow each other closely, so that a random moment often falls into one."""
    return tiny_config(steps=STEPS, grad_accum=2)


@pytest.fixture(scope="module")
def unbroken(cfg, tmp_path_factory) -> Run:
    return fit(cfg, out=tmp_path_factory.mktemp("unbroken") / "run", say=lambda line: None)


@pytest.fixture
def command(cfg, tmp_path) -> list[str]:
    config = tmp_path / "config.json"
    config.write_bytes(resolved_json(cfg))
    return [sys.executable, "-m", "jaxlm", "train", str(config), "--out", str(tmp_path / "run")]


def lines(run: Path) -> int:
    path = run / "telemetry.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: Path) -> bool:
    return any(run.glob("checkpoints/.*.tmp"))


def stop(command: list[str], when: Callable[[], bool], number: int, delay: float = 0.0) -> int:
    """Run until `when`, wait `delay` seconds more, send the signal; returns the exit status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not when():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode in (-number, 0, 3), errors.decode()
    return process.returncode


def finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()


def assert_same(run: Path, unbroken: Run) -> None:
    """Every telemetry line and every leaf of the final state, and nothing broken or left behind."""
    assert (run / "telemetry.jsonl").read_bytes() == (unbroken.path / "telemetry.jsonl").read_bytes()
    ours, theirs = (CheckpointStore(path / "checkpoints").manifest(STEPS) for path in (run, unbroken.path))
    assert ours.facts["leaves"] == theirs.facts["leaves"]
    assert len(ours.facts["leaves"]) > 20
    assert ours.fingerprint == theirs.fingerprint
    assert [finding for finding in audit(run) if not finding.kept] == []
    assert not list(run.rglob("*.tmp"))


def kill_and_resume(command: list[str], unbroken: Run, seed: int, kills: int) -> list[tuple[int, bool]]:
    """Kill at random moments of the training, each process a little further on; returns what each kill met."""
    run, rng, met = Path(command[-1]), random.Random(seed), []
    for index in range(kills):
        store = CheckpointStore(run / "checkpoints")
        goal = min(lines(run) + rng.randrange(1, 2 * STEPS // kills), STEPS - 1)
        aimed = index % 2 == 1
        when = (lambda: saving(run)) if aimed else (lambda goal=goal: lines(run) >= goal)
        status = stop(command, when, signal.SIGKILL, delay=rng.random() * 0.05)
        durable, seen = store.latest() or 0, lines(run)
        if status == 0:
            break
        # Of what was done, at most the steps since the last save that could be finished are lost, and one save under way.
        assert seen - durable <= 2 * EVERY
        met.append((durable, saving(run)))
    durable = CheckpointStore(run / "checkpoints").latest() or 0
    finish(command)
    starts = [json.loads(line)["step"] for line in (run / "events.jsonl").read_text().splitlines() if '"start"' in line]
    assert starts[-1] == durable or durable == STEPS
    assert_same(run, unbroken)
    return met


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_unbroken(command, unbroken):
    met = kill_and_resume(command, unbroken, seed=int.from_bytes(os.urandom(4), "big"), kills=6)
    assert len(met) >= 2
    assert any(durable > 0 for durable, _ in met)


@pytest.mark.slow
def test_killed_while_tokenizer_and_shards_are_made(command, unbroken):
    run = Path(command[-1])
    for what in ("resolved.json", ".tokenizer.*.tmp", "tokenizer", ".data.*.tmp", "data", "manifest.json"):
        stop(command, lambda what=what: any(run.glob(what)), signal.SIGKILL)
    finish(command)
    assert (run / "telemetry.jsonl").read_bytes() == (unbroken.path / "telemetry.jsonl").read_bytes()


@pytest.mark.slow
def test_sigterm_saves_and_ends_well_and_ctrl_c_says_that_it_can_go_on(command, unbroken):
    run = Path(command[-1])
    assert stop(command, lambda: (run / "resolved.json").exists(), signal.SIGTERM) == 0
    assert not list(run.glob(".*.tmp"))
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 3)):
        before = lines(run)
        assert stop(command, lambda before=before: lines(run) >= before + 3, number) == status
        assert CheckpointStore(run / "checkpoints").latest() == lines(run) < STEPS
    finish(command)
    assert_same(run, unbroken)
