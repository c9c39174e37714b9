"""How the hot loops are compiled: without the interpreter's lock, and kept on the disk.

numba keys its files on the source file of the function alone, although helpers from other files are compiled into it; here the
key is a digest of the whole room, so that machine code never outlives a line that it was made of.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, registry


@functools.cache
def room_digest() -> str:
    """sha256 over the sources of this room."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _of_the_room(locator: Any) -> Any:
    return type(f"Room{locator.__name__}", (locator,), {"get_source_stamp": lambda self: room_digest()})


_LOCATORS = [_of_the_room(locator) for locator in caching.CacheImpl._locator_classes]


class _Cache(caching.FunctionCache):
    _impl_class = type("RoomImpl", (caching.CompileResultCacheImpl,), {"_locator_classes": _LOCATORS})


def inlined(function: Callable) -> Any:
    """A helper of hot loops, compiled into those that call it."""
    return numba.njit(nogil=True, forceinline=True, error_model="numpy")(function)


def helper(function: Callable) -> Any:
    """A helper of hot loops that is called now and then, and keeps its own frame."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def compiled(function: Callable) -> Any:
    """A hot loop that Python calls. It takes integers only: lengths, and addresses of arrays that the caller keeps alive.

    Its machine code is kept beside the sources, or where NUMBA_CACHE_DIR says, or in the user's cache directory; where none of
    them can be written, it is compiled in every process.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # no place for it on the disk
        dispatcher._cache = _Cache(function)
    return dispatcher


def is_ready(dispatcher: Any) -> bool:
    """Whether machine code of a `compiled` function is in this process or on the disk, so that a call compiles nothing."""
    if dispatcher.signatures:
        return True
    cache = dispatcher._cache
    if isinstance(cache, caching.NullCache):
        return False
    names = dispatcher.py_func.__code__.co_argcount
    key = cache._index_key((numba.int64,) * names, registry.cpu_target.target_context.codegen())
    name = cache._cache_file._load_index().get(key)
    return name is not None and os.path.exists(os.path.join(cache.cache_path, name))
