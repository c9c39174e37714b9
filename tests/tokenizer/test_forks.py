"""A child that is forked amidst the work of another thread works, whatever that thread was at."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from jaxlm.tokenizer import choosing, forks
from jaxlm.tokenizer.forks import compiling, loading

# A thread stops at one point of its first call, the process is forked there, and the child makes the same call.
FORKED = """
import faulthandler, importlib.machinery, os, sys, threading, time
from jaxlm.tokenizer import Tokenizer, portable
from jaxlm.tokenizer.forks import WAIT

point, waits = sys.argv[1], sys.argv[1] not in ("compile", "arrays")
reached, begun, done = threading.Event(), threading.Event(), threading.Event()
held = threading.Lock()  # as a library holds one of its own while it works

def stop():
    if not reached.is_set():
        reached.set()
        if waits:
            begun.wait(60)
            time.sleep(0.3)  # a fork that does not wait is over by then
        else:
            done.wait(WAIT / 2)

def stopped(work):
    def wrapped(*words, **options):
        with held:
            stop()
            return work(*words, **options)
    return wrapped

class Finder:
    def find_spec(name, path=None, target=None):
        if name != point:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader.exec_module = stopped(spec.loader.exec_module)
        return spec

if point == "link":
    from jaxlm.tokenizer.compiled import jit
    jit._link = stopped(jit._link)
elif point == "compile":
    from jaxlm.tokenizer.compiled import jit
    jit._njit = stopped(jit._njit)
elif point == "arrays":
    portable._Arrays.encode = stopped(portable._Arrays.encode)
else:
    sys.meta_path.insert(0, Finder)

tok = Tokenizer([(b"a", b"b")], (), "gpt2", engine="portable" if point == "arrays" else "auto")
count = 200_000 if waits else 800_000
threading.Thread(target=tok.encode_to_numpy, args=("ab " * count,), daemon=True).start()
assert reached.wait(60)
os.register_at_fork(before=begun.set)
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(60, exit=True)
    amidst = held.locked()
    if point == "arrays":
        held = threading.Lock()  # the arrays are ours
    print(amidst, len(tok.encode_to_numpy("ab " * count)) == 2 * count, tok.engine, flush=True)
    os._exit(0)
done.set()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("point", ["jaxlm.tokenizer.compiled.encode", "llvmlite.binding", "link", "compile", "arrays"])
def test_a_child_that_is_forked_amidst_the_work_of_another_thread_works(tmp_path, point):
    environment = dict(os.environ)
    if point == "compile":
        environment["JAXLM_CACHE_DIR"] = str(tmp_path)
    else:
        choosing.ENCODING.require()  # what these points load must be on the disk
    done = subprocess.run([sys.executable, "-c", FORKED, point], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A fork waits for what is loaded, and finds it done; it does not wait for the rest, and the child does without.
    expected = "True True portable" if point in ("compile", "arrays") else "False True compiled"
    assert done.stdout.strip() == expected, done.stderr
    assert ("forked while another thread compiled" in done.stderr) == (point == "compile")


class Parent(threading.Thread):
    """A thread that forks, as far as the hooks go: what is asked for in the child is asked for in this process."""

    def __init__(self, after):
        super().__init__(daemon=True)
        self.after = after

    def run(self):
        """Fork."""
        forks._before()
        self.after()


@pytest.fixture
def as_it_was(monkeypatch):
    """The state of the module is that of before, afterwards."""
    for name in ("_ONE", "_STILL", "_compiling", "_has_lost"):
        monkeypatch.setattr(forks, name, getattr(forks, name))


def test_no_process_is_forked_while_code_is_loaded_but_while_it_is_compiled(as_it_was):
    parent = Parent(forks._in_parent)
    with loading():
        parent.start()
        parent.join(0.2)
        assert parent.is_alive()
        with compiling():
            parent.join(60)
            assert not parent.is_alive()


def test_a_child_of_a_fork_that_would_not_wait_longer_loads_nothing(as_it_was, monkeypatch):
    monkeypatch.setattr(forks, "WAIT", 0.01)
    child = Parent(forks._in_child)
    with loading():
        child.start()
        child.join(60)
    with pytest.raises(ImportError, match="forked while another thread compiled; load"), loading():
        pass


def test_a_child_of_a_thread_that_loads_goes_on_with_it(as_it_was):
    with loading():
        forks._before()
        forks._in_child()
    with loading():
        pass
    assert not forks._has_lost


IMPORTS = """
import sys
from jaxlm.tokenizer import Tokenizer
tok = Tokenizer([(b"a", b"b")], (), "gpt2", engine="portable")
before = set(sys.modules)
assert len(tok.encode("ab " * 200_000)) == 400_000
assert tok.decode(tok.encode_batch(["ab " * 2_000])[0]) == "ab " * 2_000
print(*sys.modules.keys() - before)
"""


def test_python_and_numpy_import_nothing_when_they_are_called():
    """An import that another thread is at when the process is forked never ends in the child."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
