"""Which code does the work, and with how many threads: one rule for encoding and for training.

Python and NumPy work at once; compiled loops give the same results faster. Where their machine code is on the disk, loading it
takes a tenth of a second, in which some text is encoded as well; where it is not, compiling takes seconds, once and for all
processes. The price is paid when so much text has come that it pays.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from jaxlm.tokenizer.forks import loading

if TYPE_CHECKING:
    from jaxlm.tokenizer.compiled.jit import compiled

Choice = Literal["auto", "portable", "compiled"]
READY_BYTES = 1 << 18  # from so much text on compiled code is loaded, if it is on the disk
COMPILE_BYTES = 1 << 21  # from so much on it is made
MOST_THREADS = 8  # where nobody says how many: each has a table of its own

_ROOM = "jaxlm.tokenizer.compiled"


class Kernels:
    """Compiled functions that are used together, all of them in some modules of the room of compiled code."""

    def __init__(self, *modules: str):
        self._modules = [f"{_ROOM}.{name}" for name in modules]
        self._functions: list[compiled] = []  # once they are imported
        self._tried = 0  # text for which loading (READY_BYTES) or compiling (COMPILE_BYTES) was tried in vain

    @property
    def are_loaded(self) -> bool:
        """Whether this process has the machine code of all of them."""
        return bool(self._functions) and all([function.is_loaded for function in self._functions])

    def are_worth(self, work: int) -> bool:
        """Whether they are to be used for `work` bytes of text; if so, they are loaded.

        False where numba or llvmlite is not there, or cannot be used, and then warns: it does not know the version of NumPy,
        say. What failed once is not tried again in this process.
        """
        if self.are_loaded:
            return True
        for limit in (READY_BYTES, COMPILE_BYTES):
            if work < limit or self._tried >= limit:
                continue
            try:
                if self._load(make=limit == COMPILE_BYTES):
                    return True
            except ImportError as error:
                if not isinstance(error, ModuleNotFoundError):
                    warnings.warn(f"tokenizers run without compiled code, slower: {error}", stacklevel=3)
            self._tried = limit
        return False

    def require(self) -> None:
        """Load them, and compile those that are not on the disk. Raises ImportError where that cannot be done."""
        if self.are_loaded:
            return
        try:
            self._load(make=True)
        except ImportError as error:
            mend = "; pip install numba" if isinstance(error, ModuleNotFoundError) else ""  # others say what mends them
            raise ImportError(
                f"engine: expected numba and llvmlite for 'compiled', found: {error}{mend}, or use 'auto'"
            ) from error

    def _load(self, *, make: bool) -> bool:
        """Load them all, or none: whether it was done. make: compile what is not on the disk."""
        if not self._functions:
            with loading():
                self._functions = self.functions()
        return all([function.load(make=make) for function in self._functions])

    def functions(self) -> list[compiled]:
        """All of them, whether their machine code is there or not; imports their modules."""
        from jaxlm.tokenizer.compiled.jit import compiled

        modules = [import_module(name) for name in self._modules]
        return [value for module in modules for value in vars(module).values() if isinstance(value, compiled)]


ENCODING = Kernels("merge", "encode", "decode", "pretokens")
TRAINING = Kernels("count", "words", "learn")


def require_choice(engine: str) -> None:
    """Raise ValueError for what is no `Choice`."""
    if engine not in get_args(Choice):
        raise ValueError(f"engine: expected one of {', '.join(get_args(Choice))}, found {engine!r}")


def thread_count(threads: int | None) -> int:
    """Threads to use: as many as are asked for; None: one for each processor, up to `MOST_THREADS`.

    Raises ValueError for less than one.
    """
    if threads is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        return min(MOST_THREADS, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, or None, found {threads}")
    return threads
