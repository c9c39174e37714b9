"""Forks beside threads: a child has the thread that forked, and locks that others held at that moment stay taken in it.

Loading machine code takes locks that are not ours to renew: those of Python's imports, that of llvmlite. So a fork waits until
loading is over: a tenth of a second where the code is on the disk, a second where numba is imported. Compiling takes ten, and
no fork waits for it: a child that is forked meanwhile does without compiled code it does not have yet, and touches neither
numba nor llvmlite.
"""

from __future__ import annotations

# Before a fork its hooks run in reverse order of registration: logging's lock, which numba and llvmlite take as they are
# imported, must be asked for after ours.
import logging  # noqa: F401
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

if sys.version_info >= (3, 12):
    from functools import cached_property
else:
    # Python 3.11's holds a lock while it computes, one for all instances: a child that is forked meanwhile never gets it.
    class cached_property:
        """A property that is computed once, or by threads that come together more than once, and never behind a lock."""

        def __init__(self, make):
            self._make, self.__doc__ = make, make.__doc__

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            made = instance.__dict__[self._name] = self._make(instance)
            return made


__all__ = ["cached_property", "compiling", "loading"]

WAIT = 20.0  # seconds that a fork waits at most: whatever went wrong, it goes on, and its child does without

_ONE = threading.RLock()  # one thread loads or compiles at a time
_STILL = threading.RLock()  # while it is held no process is forked
_compiling = False
_has_lost = False  # whether this process, or one that it comes from, was forked amidst the work of another thread


class Forking(threading.local):
    """Whether this thread, which is about to fork, holds `_STILL`."""

    holds = False


_forking = Forking()


@contextmanager
def loading() -> Iterator[None]:
    """Around all that imports or links for compiled code; not to be nested. One thread at a time is inside.

    Raises ImportError in a process that was forked while another thread compiled: what that thread holds is never given back.
    """
    with _ONE:
        if _has_lost:
            raise ImportError("this process was forked while another thread compiled; load compiled code before it is")
        with _STILL:
            yield


@contextmanager
def compiling() -> Iterator[None]:
    """Inside of `loading`, around what takes long: processes may be forked, and their children will load no code."""
    global _compiling
    _compiling = True
    _STILL.release()
    try:
        yield
    finally:
        _STILL.acquire()
        _compiling = False


def _before() -> None:
    _forking.holds = _STILL.acquire(timeout=WAIT)


def _in_parent() -> None:
    if _forking.holds:
        _STILL.release()


def _in_child() -> None:
    global _ONE, _STILL, _compiling, _has_lost
    _has_lost = _has_lost or _compiling or not _forking.holds
    _compiling = False
    if _forking.holds:
        _STILL.release()
    else:
        _STILL = threading.RLock()
    if _ONE.acquire(blocking=False):
        _ONE.release()
    else:
        _ONE = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
