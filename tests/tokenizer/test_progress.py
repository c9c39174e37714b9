"""Bars appear on a terminal, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
from jaxlm.tokenizer import train_tokenizer
train_tokenizer(["low low lower lowest " * 50], vocab_size=262, progress={})
"""


def stderr_of(progress: bool, *, terminal: bool) -> str:
    command = [sys.executable, "-c", CODE.format(progress)]
    if not terminal:
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
    ours, theirs = os.openpty()
    done = subprocess.run(command, check=True, stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        text = os.read(ours, 1 << 16).decode()
    except (BlockingIOError, OSError):
        text = ""
    os.close(ours)
    assert done.stdout == b""
    return text


def test_bars_are_shown_on_a_terminal_only():
    assert stderr_of(True, terminal=False) == ""
    assert stderr_of(False, terminal=True) == ""
    shown = stderr_of(True, terminal=True)
    assert "Counting pre-tokens" in shown
    assert "Merging pairs" in shown
    assert "5 of 5 merges" in shown
