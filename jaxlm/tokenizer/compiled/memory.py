"""Memory by address, for compiled code.

Code that passes arrays to helpers counts references in its innermost loops: with plain addresses the same loops take a half to
a tenth of the time. Nothing is checked: the caller keeps the memory alive and knows its bounds. Loads and stores need no
alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxlm.tokenizer.compiled.jit import Lazy


def _load(name: str) -> Any:
    def make() -> Any:
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic

        number = getattr(types, name)

        @intrinsic
        def load(context, address):  # type: ignore[no-untyped-def]
            def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
                pointer = builder.inttoptr(arguments[0], ir.IntType(number.bitwidth).as_pointer())
                return builder.load(pointer, align=1)

            return number(types.int64), generate

        return load

    return Lazy(make)


def _store(name: str) -> Any:
    def make() -> Any:
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic

        number = getattr(types, name)

        @intrinsic
        def store(context, address, value):  # type: ignore[no-untyped-def]
            def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
                pointer = builder.inttoptr(arguments[0], ir.IntType(number.bitwidth).as_pointer())
                builder.store(arguments[1], pointer, align=1)
                return context.get_dummy_value()

            return types.void(types.int64, number), generate

        return store

    return Lazy(make)


def _external(symbol: str, result: str, call: Callable) -> Any:
    """A function of one integer that the linker finds; `call` gives its LLVM type and its further arguments."""

    def make() -> Any:
        from llvmlite import ir
        from numba import types
        from numba.core import cgutils
        from numba.extending import intrinsic

        @intrinsic
        def external(context, number):  # type: ignore[no-untyped-def]
            def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
                kind, values = call(ir, builder, arguments[0])
                found = builder.call(cgutils.get_or_insert_function(builder.module, kind, symbol), values)
                return builder.ptrtoint(found, ir.IntType(64)) if result == "int64" else context.get_dummy_value()

            return getattr(types, result)(types.int64), generate

        return external

    return Lazy(make)


def _prefetch_call(ir: Any, builder: Any, address: Any) -> tuple[Any, list[Any]]:
    pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    read_keep_data = [ir.Constant(flag, value) for value in (0, 3, 1)]
    return ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag]), [builder.inttoptr(address, pointer), *read_keep_data]


def _malloc_call(ir: Any, builder: Any, size: Any) -> tuple[Any, list[Any]]:
    return ir.FunctionType(ir.IntType(8).as_pointer(), [ir.IntType(64)]), [size]


def _free_call(ir: Any, builder: Any, address: Any) -> tuple[Any, list[Any]]:
    pointer = ir.IntType(8).as_pointer()
    return ir.FunctionType(ir.VoidType(), [pointer]), [builder.inttoptr(address, pointer)]


load_u8 = _load("uint8")
load_i32 = _load("int32")
load_i64 = _load("int64")
load_u64 = _load("uint64")
store_u8 = _store("uint8")
store_i32 = _store("int32")
store_i64 = _store("int64")
store_u64 = _store("uint64")
prefetch = _external("llvm.prefetch.p0", "void", _prefetch_call)  # asks for the cache line at an address, to be read soon
malloc = _external("malloc", "int64", _malloc_call)  # the address of new memory, 0 where there is none
free = _external("free", "void", _free_call)
