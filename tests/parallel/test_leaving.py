"""The end of a process: with its status and its words, and with its status where nobody takes the words."""

import os
import subprocess
import sys
import threading

import pytest

from jaxlm.parallel.leaving import stacks

PROGRAM = """
import sys, threading
from jaxlm.parallel import leaving
leaving.PATIENCE = 0.2
def end():
    sys.stdout.write("said before")
    leaving.leave(4, "error: the end", before="x" * int(sys.argv[1]))
threading.Thread(target=end).start()
threading.Event().wait()
"""


def ending(size: int, **streams) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", PROGRAM, str(size)], timeout=120, env=env, **streams)


def test_a_process_leaves_with_its_status_and_its_words():
    done = ending(3, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (4, "said before", "xxxjaxlm: error: the end\n")


@pytest.mark.parametrize(("size", "reads"), [(0, False), (1_000_000, True)], ids=["closed", "full"])
def test_a_process_leaves_where_nobody_takes_its_words(size, reads):
    reader, writer = os.pipe()
    if not reads:
        os.close(reader)
    try:
        assert ending(size, stdout=writer, stderr=writer).returncode == 4
    finally:
        os.close(writer)
        if reads:
            os.close(reader)


def test_stacks_name_threads_and_calls():
    begun, end = threading.Event(), threading.Event()

    def held():
        begun.set()
        end.wait()

    thread = threading.Thread(target=held, name="the held one")
    thread.start()
    begun.wait()
    text = stacks()
    end.set()
    thread.join()
    part = text.partition("thread the held one")[2]
    assert "test_leaving.py" in part
    assert "in held" in part
