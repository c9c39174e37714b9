"""Loads and stores at an address, for compiled code.

Code that passes arrays to helpers counts references in its innermost loops: with plain addresses the same loops take a half to
a tenth of the time.

Nothing is checked: the caller keeps the memory alive and knows its bounds. Loads and stores need no alignment.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _load(number: Any) -> Any:
    @intrinsic
    def load(context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], ir.IntType(number.bitwidth).as_pointer())
            return builder.load(pointer, align=1)

        return number(types.int64), generate

    return load


def _store(number: Any) -> Any:
    @intrinsic
    def store(context, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], ir.IntType(number.bitwidth).as_pointer())
            builder.store(arguments[1], pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, number), generate

    return store


def _prefetch() -> Any:
    @intrinsic
    def prefetch(context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            read, keep, data = (ir.Constant(flag, value) for value in (0, 3, 1))
            builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return prefetch


load_u8 = _load(types.uint8)
load_i32 = _load(types.int32)
load_i64 = _load(types.int64)
load_u64 = _load(types.uint64)
store_u8 = _store(types.uint8)
store_i32 = _store(types.int32)
store_i64 = _store(types.int64)
store_u64 = _store(types.uint64)
prefetch = _prefetch()  # asks for the cache line at an address, which will be read soon
