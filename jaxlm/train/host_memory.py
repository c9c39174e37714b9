"""Memory that the C library keeps for the next step, on a CPU.

XLA asks for the temporary arrays of a step anew in every call. By default glibc gives each of these large blocks back to the
kernel, which zeroes it page by page when the next step touches it: 1.65 s instead of 1.55 s a step for the benchmark's model
(docs/bench/2026-11-25-train.md).
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3) and what they are set to, in this order.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Let the process keep the memory that it frees, up to 2 GiB at the end of the heap; true where that was set.

    For the whole process, and before other threads are started: call it first. One heap instead of one for each thread, so
    that a block freed by one is found by another. False, and nothing changes, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*pair) == 1 for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)))
