"""Memory that is freed is used again without a page fault."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.train.host_memory import keep_memory

CHILD = """
import resource, sys
import numpy as np
from jaxlm.train.host_memory import keep_memory

if sys.argv[1] == "kept" and not keep_memory():
    raise SystemExit(9)
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=False)
    if done.returncode == 9:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_a_freed_block_is_used_again_without_page_faults():
    assert faults("kept") < 100 < faults("as it is")


def test_the_heap_asks_for_large_pages():
    """Of the regions of the heap, one of about 2 GiB is marked, and none of it is there before it is used."""
    script = "from jaxlm.train.host_memory import keep_memory; print(keep_memory()); print(open('/proc/self/smaps').read())"
    said, _, maps = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    ).stdout.partition("\n")
    if said != "True" or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("the C library is not glibc, or the kernel has no large pages")
    regions = re.findall(r"\[heap\]\nSize: +(\d+) kB\n.*?Rss: +(\d+) kB\n.*?VmFlags: ([^\n]*)", maps, re.DOTALL)
    marked = [(int(size), int(resident)) for size, resident, flags in regions if " hg" in flags]
    assert sum(size for size, _ in marked) > 2_000_000
    assert sum(resident for _, resident in marked) < 10_000


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1.2"))
    assert keep_memory() is False
