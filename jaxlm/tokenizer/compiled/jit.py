"""How the hot loops become machine code, and stay it.

numba compiles them, without the interpreter's lock and without wrappers for Python. The object code is kept on the disk and
loaded by llvmlite, so that a process which finds it there needs no numba: importing numba and starting its compiler takes half
a second, loading the code a few milliseconds. A file is named by a digest of every source of this room, since helpers from
several of them are compiled into one function, of numba's settings, and of the versions and the processor that it was made for;
machine code never outlives a line that it was made of. The sources are read when this module is imported, as those of the
functions are: code of a process whose sources were edited since is not kept. What older sources left beside them is removed.

Functions are marked when they are defined, and compiled when they are first called: `compiled` for those that Python calls,
`inlined` and `helper` for those that they call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.config.caches import cache_folder
from jaxlm.contract import write_atomic
from jaxlm.tokenizer.forks import compiling, loading

CONSTANTS = ("unicode.py", "merging.py")  # files above this room whose constants are compiled in
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
SETTINGS_OF_NO_CODE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
_KEPT: list[Any] = []  # what holds the machine code in memory
_ROOM = Path(__file__).parent


class Lazy:
    """What becomes something of numba's when a function that names it is compiled."""

    def __init__(self, make: Callable[[], Any]):
        self.make = functools.cache(make)


def inlined(function: Callable) -> Any:
    """A helper of hot loops, compiled into those that call it."""
    return Lazy(lambda: _njit(function, forceinline=True))


def helper(function: Callable) -> Any:
    """A helper of hot loops that is called now and then, and keeps its own frame."""
    return Lazy(lambda: _njit(function))


def _njit(function: Callable, **options: Any) -> Any:
    from numba import njit

    make: Any = njit
    return make(**OPTIONS, **options)(_resolved(function))


def _resolved(function: Callable) -> Callable:
    """`function` with what it names made."""
    namespace = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(namespace.get(name), Lazy):
            namespace[name] = namespace[name].make()
    cells = function.__closure__
    resolved = types.FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, cells)
    resolved.__module__, resolved.__qualname__ = function.__module__, function.__qualname__
    return resolved


class compiled:
    """A hot loop that Python calls. It takes and returns integers only: lengths, and addresses of arrays that the caller keeps
    alive. It raises nothing, and other threads run while it does.
    """

    def __init__(self, function: Callable):
        self.function = function
        self._arguments = function.__code__.co_argcount
        self._call: Callable | None = None

    def __call__(self, *arguments: int) -> int:
        if self._call is None:
            self.load(make=True)
        assert self._call is not None
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        status = self._call(ctypes.byref(result), ctypes.byref(failure), *map(int, arguments))
        assert status == 0, f"{self.function.__name__} ended with {status}"
        return result.value

    @property
    def is_loaded(self) -> bool:
        """Whether its machine code is in this process."""
        return self._call is not None

    @property
    def file(self) -> str:
        """The name of the file that holds its machine code."""
        where = f"{self.function.__module__}.{self.function.__qualname__}"
        made_for, made_of = (hashlib.sha256(text.encode()).hexdigest() for text in (_made_for(), f"{where} {_SOURCES}"))
        return f"{self.function.__name__}-{made_for[:8]}-{made_of[:24]}.o"

    def load(self, *, make: bool) -> bool:
        """Whether its machine code is in this process now. make: compile it if it is not on the disk.

        Raises ImportError where llvmlite, or numba to compile with, cannot be used.
        """
        if self._call is not None:
            return True
        with loading(), _libraries():
            if self._call is None:
                found = _load(self.file) or (self._compile() if make else None)
                if found is None:
                    return False
                pointers = ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p)
                kind = ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *[ctypes.c_int64] * self._arguments)
                self._call = kind(_link(*found))
        return True

    def _compile(self) -> tuple[str, bytes]:
        """The function's symbol and its object code, which is kept on the disk where there is a place."""
        import numba

        if vars(numba.config).get("DISABLE_JIT"):
            raise Disabled("NUMBA_DISABLE_JIT is set; unset it")
        file = self.file
        with compiling():
            dispatcher = _njit(self.function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
            dispatcher.compile((numba.int64,) * self._arguments)
            (made,) = dispatcher.overloads.values()
            returned = made.signature.return_type
            assert numba.types.unliteral(returned) == numba.int64, f"{self.function.__name__} returns {returned}"
            symbol, code = made.fndesc.llvm_func_name, made.library.serialize_using_object_code()[2][0]
            _keep(file, symbol, code)
        return symbol, code


class Disabled(ImportError):
    """numba is there, and is told not to compile."""


@contextlib.contextmanager
def _libraries() -> Iterator[None]:
    """Let whatever is wrong with numba or llvmlite be an ImportError, which says what mends it. Those that are installed and
    cannot work raise anything: OSError without their shared library, AttributeError beside a NumPy that they do not know.
    """
    try:
        yield
    except (ModuleNotFoundError, Disabled, AssertionError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # Ctrl-C while an extension module was imported
        found = f"{type(error).__name__}: {error}".rstrip(".")
        raise ImportError(f"numba or llvmlite failed with {found}; install versions of them that fit NumPy") from error


# ---- on the disk -------------------------------------------------------------------------------------------------


def _sources() -> str:
    """A digest of the sources of this room and of `CONSTANTS`, as they are on the disk."""
    digest = hashlib.sha256()
    for path in [*sorted(_ROOM.glob("*.py")), *(_ROOM.parent / name for name in CONSTANTS)]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


_SOURCES = _sources()


@functools.cache
def _made_for() -> str:
    """What machine code depends on beside its sources: the compiler's versions and settings, the processor."""
    from llvmlite import binding

    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    settings = sorted(
        item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] not in SETTINGS_OF_NO_CODE
    )
    processor = [binding.get_default_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    return f"{versions} {settings} {processor} {sys.version_info[:2]}"


def _folders() -> list[Path]:
    """Where machine code may lie: beside the sources, or with the user's other caches; JAXLM_CACHE_DIR overrides both."""
    ours = cache_folder()
    folders = [] if ours is None else [ours]
    return folders if os.environ.get("JAXLM_CACHE_DIR") else [_ROOM / "__pycache__", *folders]


def _load(file: str) -> tuple[str, bytes] | None:
    """Symbol and object code from the disk, if they are there and whole."""
    for folder in _folders():
        try:
            digest, symbol, code = (folder / file).read_bytes().split(b"\n", 2)
        except (OSError, ValueError):
            continue
        if _digest(file, symbol, code) == digest:
            return symbol.decode(), code
    return None


def _digest(file: str, symbol: bytes, code: bytes) -> bytes:
    """Of the content and of its name: another function's code is as wrong as a damaged one."""
    return hashlib.sha256(b"\n".join([file.encode(), symbol, code])).hexdigest().encode()


def _keep(file: str, symbol: str, code: bytes) -> None:
    """Write symbol and object code to the first folder that takes them; nowhere if none does, or if the sources changed."""
    if _sources() != _SOURCES:
        return
    content = b"\n".join([_digest(file, symbol.encode(), code), symbol.encode(), code])
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / file, content)
            if folder.parent == _ROOM:  # no other sources use it; another Python or processor may
                for old in folder.glob(f"{file.rpartition('-')[0]}-*.o"):
                    if old.name != file:
                        old.unlink(missing_ok=True)
            return
        except OSError:
            continue


def _link(symbol: str, code: bytes) -> int:
    """The address of a function of object code, which is kept in memory for good."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=binding.get_host_cpu_name(), jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _KEPT.append((engine, machine))
    return int(engine.get_function_address(symbol))
