"""How the hot loops become machine code, and stay it.

numba compiles them, without the interpreter's lock and without wrappers for Python. The object code is kept on the disk and
loaded by llvmlite, so that a process which finds it there needs no numba: importing numba and starting its compiler takes half
a second, loading the code a few milliseconds. A file is named by a digest of every source of this room, since helpers from
several of them are compiled into one function, and of the versions and the processor that it was made for; machine code never
outlives a line that it was made of.

Functions are marked when they are defined, and compiled when they are first called: `compiled` for those that Python calls,
`inlined` and `helper` for those that they call.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_LOCK = threading.RLock()  # compiler and linker are not for two threads at once
_KEPT: list[Any] = []  # what holds the machine code in memory


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
        call = self._call or self._prepare()
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        status = call(ctypes.byref(result), ctypes.byref(failure), *map(int, arguments))
        assert status == 0, f"{self.function.__name__} ended with {status}"
        return result.value

    @property
    def is_loaded(self) -> bool:
        """Whether its machine code is in this process."""
        return self._call is not None

    @property
    def is_ready(self) -> bool:
        """Whether its machine code is in this process or on the disk, so that a call compiles nothing."""
        try:
            return self.is_loaded or any((folder / self.file).is_file() for folder in _folders())
        except ImportError:  # of llvmlite, without which nothing can be loaded
            return False

    @property
    def file(self) -> str:
        """The name of the file that holds its machine code."""
        where = f"{self.function.__module__}.{self.function.__qualname__}"
        digest = hashlib.sha256(f"{where} {_key()}".encode()).hexdigest()
        return f"{self.function.__name__}-{digest[:24]}.o"

    def _prepare(self) -> Callable:
        with _LOCK:
            if self._call is None:
                found = _load(self.file) or self._compile()
                address = _link(*found)
                pointers = ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p)
                kind = ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *[ctypes.c_int64] * self._arguments)
                self._call = kind(address)
            return self._call

    def _compile(self) -> tuple[str, bytes]:
        """The function's symbol and its object code, which is kept on the disk where there is a place."""
        import numba

        dispatcher = _njit(self.function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        dispatcher.compile((numba.int64,) * self._arguments)
        (made,) = dispatcher.overloads.values()
        returned = made.signature.return_type
        assert numba.types.unliteral(returned) == numba.int64, f"{self.function.__name__} returns {returned}"
        symbol, code = made.fndesc.llvm_func_name, made.library.serialize_using_object_code()[2][0]
        _keep(self.file, symbol, code)
        return symbol, code


@functools.cache
def has_compiler() -> bool:
    """Whether numba can be imported. Warns where it is there and cannot, since it does not know the version of NumPy, say."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"numba cannot be imported ({error}): tokenizers run without it, slower", stacklevel=2)
        return False
    return True


# ---- on the disk -------------------------------------------------------------------------------------------------


@functools.cache
def _key() -> str:
    """What machine code depends on: the sources of this room, the compiler's versions, the processor."""
    from llvmlite import binding

    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    processor = [binding.get_default_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    return f"{digest.hexdigest()} {versions} {processor} {sys.version_info[:2]}"


def _folders() -> list[Path]:
    """Where machine code may lie: beside the sources, or with the user's other caches; JAXLM_CACHE_DIR overrides both."""
    if chosen := os.environ.get("JAXLM_CACHE_DIR"):
        return [Path(chosen)]
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(__file__).parent / "__pycache__", users / "jaxlm"]


def _load(file: str) -> tuple[str, bytes] | None:
    """Symbol and object code from the disk, if they are there and whole."""
    for folder in _folders():
        try:
            digest, symbol, code = (folder / file).read_bytes().split(b"\n", 2)
        except (OSError, ValueError):
            continue
        if _digest(symbol, code) == digest:
            return symbol.decode(), code
    return None


def _digest(symbol: bytes, code: bytes) -> bytes:
    return hashlib.sha256(symbol + b"\n" + code).hexdigest().encode()


def _keep(file: str, symbol: str, code: bytes) -> None:
    """Write symbol and object code to the first folder that takes them; nowhere if none does."""
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{file}.", delete=False) as temporary:
                temporary.write(b"\n".join([_digest(symbol.encode(), code), symbol.encode(), code]))
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, folder / file)
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
