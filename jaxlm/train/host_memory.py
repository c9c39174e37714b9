"""Memory that the C library keeps for the next step, on a CPU, in large pages where the kernel has them to give.

XLA asks for the temporary arrays of a step anew in every call. By default glibc gives each of these large blocks back to the
kernel, which zeroes it page by page when the next step touches it: 1.65 s instead of 1.55 s a step for the benchmark's model
(docs/bench/2026-11-25-train.md). What is kept may as well lie in pages of 2 MiB, of which fewer have to be looked up.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3) and what they are set to, in this order.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes at the end of the heap; what mallopt's int holds
_PAGE, _MADV_HUGEPAGE = 1 << 21, 14


def keep_memory() -> bool:
    """Let the process keep the memory that it frees, up to 2 GiB at the end of the heap; true where that was set. The first
    2 GiB of the heap are to lie in large pages, which is a wish: a kernel that has none goes on as before.

    For the whole process, and before other threads are started: call it first. One heap instead of one for each thread, so
    that a block freed by one is found by another. False, and nothing changes, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    kept = all(library.mallopt(*pair) == 1 for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, 1)))
    if kept:
        _ask_for_large_pages(library)
    return kept


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Where the heap will lie; nothing is touched, and nothing changes where the kernel has no such pages to give."""
    library.malloc.restype, library.malloc.argtypes, library.free.argtypes = (
        ctypes.c_void_p,
        (ctypes.c_size_t,),
        (ctypes.c_void_p,),
    )
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = _KEPT - _PAGE
    if block := library.malloc(size):  # none where so much may not be asked for
        first = -(-block // _PAGE) * _PAGE
        library.madvise(first, (block + size - first) // _PAGE * _PAGE, _MADV_HUGEPAGE)
        library.free(block)
