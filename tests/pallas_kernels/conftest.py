"""A deadlock of an interpreted kernel for GPUs is one of the interpreter, which waits in C++, where no signal interrupts it: a
test that takes too long ends its process, with the stacks of the threads.
"""

import faulthandler
import os

import pytest

LIMIT = 120  # seconds; the slowest takes a tenth


@pytest.fixture
def deadlock_ends_the_process(capfd):
    with capfd.disabled():
        stderr = os.dup(2)
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
