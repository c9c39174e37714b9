"""The watchdog: quiet while pieces of work end, and the end of a process that is stuck."""

import subprocess
import sys
import threading
import time

import pytest

from jaxlm.train.watchdog import FIRST, STUCK, Watchdog

STUCK_PROGRAM = """
import time
from jaxlm.train.watchdog import Watchdog
def hang():
    time.sleep(600)
with Watchdog(0.2) as watchdog:
    watchdog.at("step", 1)
    time.sleep(0.3)  # the first one may take longer
    watchdog.at("step", 2)
    hang()
"""


def test_a_step_that_does_not_end_ends_the_process_with_its_name_and_the_stacks():
    done = subprocess.run([sys.executable, "-c", STUCK_PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == STUCK
    assert "step 2: expected its end within 0.2 s (--watch.step-timeout), found none" in done.stderr
    assert "in hang" in done.stderr


def test_the_first_piece_of_a_kind_has_more_time(monkeypatch):
    ends = []
    monkeypatch.setattr("jaxlm.train.watchdog.leave", lambda *words, **_: ends.append(words))
    watchdog = Watchdog(100.0)
    watchdog.at("step", 1)
    assert watchdog._piece[2] == 100.0 * FIRST
    watchdog.at("save")
    assert watchdog._piece[2] == 100.0 * FIRST
    watchdog.at("step", 2)
    assert watchdog._piece[0] == "step 2"
    assert watchdog._piece[2] == 100.0
    assert ends == []


@pytest.mark.parametrize("seconds", [0, 50.0])
def test_it_goes_with_the_work(seconds):
    before = threading.active_count()
    with Watchdog(seconds) as watchdog:
        watchdog.at("step", 1)
        assert threading.active_count() == before + (seconds > 0)
    deadline = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < deadline
