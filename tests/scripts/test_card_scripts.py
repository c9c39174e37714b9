"""The scripts for a card, where there is none: they say so, refuse what they do not know, and fail where a check does not."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    """script(name): the module of a script, which is not run."""

    def script(name):
        loader = importlib.machinery.SourceFileLoader(f"script_{name}", str(SCRIPTS / name))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        sys.path.insert(0, str(SCRIPTS))
        try:
            loader.exec_module(module)
        finally:
            sys.path.remove(str(SCRIPTS))
        return module

    return script


def run(name, *words, **environment):
    command = [sys.executable, str(SCRIPTS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**environment})


@pytest.mark.parametrize(
    ("name", "words", "status", "said"),
    [
        ("check_kernels.py", ["stores"], 0, '"kept out": "no kernel: no GPU"'),
        ("check_kernels.py", ["loops"], 2, "expected one of stores, target, length, one-query, found loops"),
        ("tune_attention.py", [], 2, "expected a device that there are kernels for, but there is none for cpu"),
        ("gpu_all", ["--only", "tiles,luck"], 2, "found luck"),
        ("bench_attention.py", ["--out", "/nowhere/x.json"], 2, "expected --out in a folder that there is"),
        ("bench_attention.py", ["--rounds", "0"], 2, "--rounds of 1 or more"),
    ],
)
def test_what_there_is_no_card_for_or_no_such_thing_is_said_in_a_line(name, words, status, said, tmp_path):
    done = run(name, *words, PATH="/usr/bin:/bin", HOME=str(tmp_path), OUT=str(tmp_path), JAX_PLATFORMS="cpu")
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_that_does_not_hold_fails_and_what_is_found_is_written_after_each(script, tmp_path, monkeypatch):
    gpu_all = script("gpu_all")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_all", "--only", "environment,equal bits,decoding"])
    given = iter([{"device_kind": "a card", "jax": "0"}, {"made twice": False, "status": 1}])

    def child(name, *words, seconds):
        found = next(given, None)
        if found is None:  # by now both are written
            assert json.loads((tmp_path / "gpu.json").read_text())["results"]["equal bits"]["status"] == 1
            raise RuntimeError("the card is gone")
        return found

    monkeypatch.setattr(gpu_all, "child", child)
    assert gpu_all.main() == 1
    table = (tmp_path / "gpu.md").read_text()
    assert "# On a card" in table
    assert "the card is gone" in table


def test_what_is_above_its_bound_or_does_not_hold_fails(script):
    gpu_all = script("gpu_all")
    result = {"float32": 1e-7, "bfloat16": 0.3}
    assert gpu_all.within(result, float32=1e-5)["status"] == 0
    assert gpu_all.within(result, float32=1e-5, bfloat16=1e-2)["status"] == 1
    assert gpu_all.within({"float32": float("nan")}, float32=1e-5)["status"] == 1
    assert gpu_all.held({"resumed": True, "made twice": False}, "resumed")["status"] == 0
    assert gpu_all.held({"resumed": True, "made twice": False}, "resumed", "made twice")["status"] == 1


def test_what_is_nan_is_not_near(script):
    check, gpu_all, nan = script("check_kernels.py"), script("gpu_all"), float("nan")
    row = {"error / unfused": [0.7, 9.0, 1.1, 2.5, 1.0], "largest": [0.1, 1e-5, 0.1, 0.1, 0.1]}
    assert check.near(row, 20.0)
    assert not check.near(row, 0.0)
    assert not check.near({**row, "error / unfused": [0.7, 1.0, 1.1, nan, 1.0]}, 20.0)
    assert not check.near({**row, "largest": [0.1, nan, 0.1, 0.1, 0.1]}, 20.0)
    assert gpu_all.within({"float32": gpu_all.largest([1e-7, nan])}, float32=1e-5)["status"] == 1


def test_the_fastest_candidate_is_taken_of_those_that_run_before_the_deadline(script):
    tune = script("tune_attention.py")
    seconds = {(64, 64): 3.0, (64, 128): 1.0, (128, 128): None, (128, 64): 2.0}
    candidates = [list(key) for key in seconds]
    best, told = tune.fastest(candidates, lambda tiles: seconds[tuple(tiles)], float("inf"))
    assert (best, sorted(told)) == ([64, 128], ["128 x 64", "64 x 128", "64 x 64"])
    assert tune.fastest(candidates, lambda tiles: 1.0, 0.0) == (None, {})
