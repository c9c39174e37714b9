"""Training in two real processes: equal to one, stopped and killed and gone on with, also by one process alone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.load import resolved_json
from jaxlm.config.schema import CheckpointConfig, MeshConfig
from jaxlm.parallel import make_mesh
from jaxlm.parallel.lookout import LOST
from jaxlm.run import Run, audit
from jaxlm.train import fit
from jaxlm.train.state import abstract_state
from tests.conftest import ROOT, tiny_config

LAUNCH = ROOT / "scripts" / "launch_local"
STEPS, HEARTBEAT = 40, 5
PATIENCE = 600.0
FSDP, ALONE = ("--mesh.fsdp", "2", "--mesh.rules", "fsdp"), ("--mesh.fsdp", "1", "--mesh.rules", "single")


def launched(processes: int, config: Path, run: Path, *words: str) -> subprocess.Popen:
    """`jaxlm train` as processes of one device each."""
    base = os.environ | {"PYTHONPATH": str(ROOT), "JAXLM_TEST_DATA": ""}
    command = ["jaxlm", "train", str(config), "--out", str(run), "--watch.heartbeat", str(HEARTBEAT), *words]
    command = [sys.executable, "-m", *command]
    whole = [sys.executable, str(LAUNCH), str(processes), "--", *command]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=base)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, said


def child(process: subprocess.Popen, index: int) -> int:
    """The number of the process of a launcher that is number `index` of the cluster."""
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        if parent == process.pid and f"JAXLM_PROCESS_ID={index}".encode() in variables:
            return int(entry.name)
    raise AssertionError(f"no process {index} below {process.pid}")


def lines(run: Path) -> list[dict]:
    path = run / "telemetry.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for(when: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def cfg():
    """A run long enough to be met in the middle."""
    made = tiny_config(steps=STEPS, grad_accum=2)
    every = dataclasses.replace(made.eval, every=20)
    return dataclasses.replace(made, checkpoint=CheckpointConfig(every=8), eval=every)


@pytest.fixture(scope="module")
def config(cfg, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_bytes(resolved_json(cfg))
    return path


@pytest.fixture(scope="module")
def unbroken(cfg, tmp_path_factory) -> Run:
    """The same run by one process, with two devices."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return fit(dataclasses.replace(cfg, mesh=MeshConfig(fsdp=2, rules="fsdp")), out=out, say=lambda line: None)


def assert_close(run: Path, unbroken: Run, *, tolerance: float) -> None:
    """The examples of every step are equal, and the losses, norms and validations close."""
    ours, theirs = lines(run), lines(unbroken.path)
    assert [record["batch_crc"] for record in ours] == [record["batch_crc"] for record in theirs][: len(ours)]
    for a, b in zip(ours, theirs, strict=False):
        assert (a["step"], a["labels"], a["bytes"]) == (b["step"], b["labels"], b["bytes"])
        for name in ("loss", "grad_norm", "param_norm", "update_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (a["step"], name)
        if "validation" in b:
            assert a["validation"] == pytest.approx(b["validation"], rel=tolerance)


@pytest.mark.slow
def test_stopped_in_two_processes_killed_in_two_and_ended_by_one_it_is_the_unbroken_run(cfg, config, unbroken, tmp_path):
    run, store = tmp_path / "run", CheckpointStore(tmp_path / "run" / "checkpoints")
    # SIGTERM to process 1 alone: both save the same step, once, and end with 0.
    process = launched(2, config, run, *FSDP)
    wait_for(lambda: len(lines(run)) >= 3, process)
    os.kill(child(process, 1), signal.SIGTERM)
    status, said = ended(process)
    assert status == 0, said
    stopped = store.latest()
    assert 3 <= stopped < STEPS, said
    assert len(lines(run)) == stopped
    assert "[0] stopped at step" in said
    assert "[1] stopped" not in said
    assert_close(run, unbroken, tolerance=1e-5)
    assert [finding for finding in audit(run) if not finding.kept] == []

    # SIGKILL of process 1: process 0 ends by itself, within the bound, and says which one is lost.
    process = launched(2, config, run, *FSDP)
    wait_for(lambda: len(lines(run)) >= stopped + 3 and "save" in (run / "events.jsonl").read_text(), process)
    os.kill(child(process, 1), signal.SIGKILL)
    began = time.monotonic()
    status, said = ended(process)
    assert status == 128 + signal.SIGKILL, said
    assert "[0] jaxlm: error: process 1 of 2 is lost" in said, said
    assert f"statuses [0] {LOST}, [1] -9" in said
    assert time.monotonic() - began < 6 * HEARTBEAT

    # One process goes on, with one device.
    status, said = ended(launched(1, config, run, *ALONE))
    assert status == 0, said
    assert "mesh.fsdp: saved 2, now 1" in said
    assert len(lines(run)) == STEPS
    assert_close(run, unbroken, tolerance=1e-3)
    assert [e["now"]["fsdp"] for e in Run.load(run).events() if e["event"] == "mesh"] == [1]
    assert [finding for finding in audit(run) if not finding.kept] == []
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_that_hold_the_same_rows_compute_what_one_does(tmp_path):
    mesh = MeshConfig(tensor=2, rules="tp")
    cfg = dataclasses.replace(tiny_config(steps=4), mesh=mesh)
    config = tmp_path / "config.json"
    config.write_bytes(resolved_json(cfg))
    status, said = ended(launched(2, config, tmp_path / "two"))
    assert status == 0, said
    one = fit(cfg, out=tmp_path / "one", say=lambda line: None)
    assert_close(tmp_path / "two", one, tolerance=1e-5)
    with jax.set_mesh(make_mesh(mesh)):
        like = abstract_state(one.config, make_mesh(mesh))
    ours, theirs = (Run.load(tmp_path / name).checkpoints.restore(like)[0] for name in ("two", "one"))
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
