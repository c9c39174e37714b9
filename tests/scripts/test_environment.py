"""The environment that the scripts make: what is asked for is what is taken, and what cannot be is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "environment"


@pytest.fixture
def ensure(tmp_path):
    """`ensure_environment ""` in an empty checkout: with uv or without, both only writing down what they are told."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "pyproject.toml").write_text("")

    def call(*, uv, status=0, **variables):
        tool = tmp_path / "bin" / "uv"
        tool.unlink(missing_ok=True)
        if uv:
            tool.write_text(f'#!/bin/sh\necho "uv $*"\nexit {status}\n')
            tool.chmod(0o755)
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        command = ["bash", "-c", f'set -uo pipefail; source {SCRIPT}; if ensure_environment ""; then exit 0; else exit 9; fi']
        env = {"PATH": path, "HOME": str(tmp_path), **variables}
        return subprocess.run(command, cwd=tmp_path / "checkout", env=env, capture_output=True, text=True)

    return call


@pytest.mark.parametrize("uv", [True, False])
def test_an_interpreter_that_is_named_and_does_not_start_is_an_error_and_no_other_is_taken(ensure, tmp_path, uv):
    done = ensure(uv=uv, JAXLM_PYTHON="/nowhere/python")
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.count("\n") == 1
    assert "JAXLM_PYTHON" in done.stderr
    assert "found /nowhere/python" in done.stderr
    assert os.listdir(tmp_path / "checkout") == ["pyproject.toml"]


def test_an_interpreter_that_is_named_and_starts_is_the_one_that_is_taken(ensure):
    done = ensure(uv=True, status=1, JAXLM_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (9, f"uv venv --quiet --seed --python {sys.executable} .venv\n")


@pytest.mark.parametrize("uv", [True, False])
def test_a_directory_that_is_no_checkout_is_an_error_in_one_line(ensure, tmp_path, uv):
    (tmp_path / "checkout" / "pyproject.toml").unlink()
    done = ensure(uv=uv)
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.count("\n") == 1
    assert "pyproject.toml" in done.stderr
    assert os.listdir(tmp_path / "checkout") == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", "-s", "bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.stdout == ""
