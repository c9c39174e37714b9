"""A program that is compiled once more after it was warm, and what changed that made it so.

A recompilation in the middle of a run stops every device for minutes, and comes back unseen where a shape or a static
value changes from step to step. jax says when it compiles (`jax.monitoring`); what a function was called with, and what of it
is another than before, is compared here.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from jaxlm.model.spec import named_leaves

COMPILED = "/jax/core/compile/backend_compile_duration"
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
SHOWN = 5  # differences that a line spells out; past them they are counted


class RecompilationWarning(UserWarning):
    """A program was compiled again after it was warm."""


class RecompilationError(AssertionError):
    """A program was compiled where none was to be."""


class Compiled(NamedTuple):
    """A program that jax compiled, or loaded from its cache. function: its name; seconds: how long that took."""

    function: str
    seconds: float


@contextmanager
def compilations() -> Iterator[list[Compiled]]:
    """The programs that this thread compiles in the block, as a list that grows."""
    found: list[Compiled] = []
    thread = threading.get_ident()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED and threading.get_ident() == thread:
            found.append(Compiled(str(kwargs.get("fun_name", "a program")), duration_secs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# ---- in runs -----------------------------------------------------------------------------------------------------


class Recompilations:
    """The phases of a loop, each of which may compile when it is run for the first time, and never again."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, str]] = {}

    @contextmanager
    def phase(self, name: str, **arguments: Any) -> Iterator[list[str]]:
        """A block that is run again and again. The list it gives holds, after the block, a line for each recompilation.

        arguments: what the block calls its programs with, by name; they may be donated in it. A program that is compiled
        although the phase is warm is a `RecompilationWarning` as well, which tests turn into an error.
        """
        lines: list[str] = []
        with compilations() as found:
            yield lines
        if name in self._seen and not found:
            return
        now = signature(**arguments)
        before, self._seen[name] = self._seen.get(name), now
        if before is not None:
            why = "; ".join(changes(before, now)) or "its arguments are those of before, so it is a new function or a setting"
            for compiled in found:
                lines.append(f"recompiled after warm-up: {compiled.function} in {name}, {compiled.seconds:.1f}s: {why}")
                warnings.warn(lines[-1], RecompilationWarning, stacklevel=3)


# ---- what a function is called with ------------------------------------------------------------------------------


def signature(**arguments: Any) -> dict[str, str]:
    """What a compiled program depends on, by name, in words: of arrays shape, dtype and layout; static values; settings."""
    found = {name: _words(leaf) for name, leaf in named_leaves(arguments).items()}
    for name, value in arguments.items():
        found |= _statics(name, value)
    found |= {f"setting {name}": str(getattr(jax.config, name, None)) for name in SETTINGS}
    found["setting mesh"] = str(jax.sharding.get_abstract_mesh())
    return found


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two signatures: `batch/tokens was int32[4,32], is int32[3,32]`. The first few, then a count."""
    names = [*before, *(name for name in now if name not in before)]
    lines = [
        f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]


def _words(leaf: Any) -> str:
    """`float32[4,32] P('data')`; a Python number by its type, since its value is no part of a program."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return type(leaf).__name__
    words = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if isinstance(leaf, jax.Array):
        layout = getattr(leaf.sharding, "spec", None)
        words += f" {leaf.sharding if layout is None else layout}"
        words += "" if leaf.committed else " uncommitted"
        words += " weak" if getattr(leaf, "weak_type", False) else ""  # keys are never weak
    return words


def _statics(name: str, value: Any) -> dict[str, str]:
    """Static fields of the dataclasses in a tree, which are part of the program, down to single values."""
    found: dict[str, str] = {}
    if jax.tree_util.all_leaves([value]):  # a config, say: jax knows no parts of it
        return _plain(name, value) if dataclasses.is_dataclass(value) else {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner, path = getattr(value, field.name), f"{name}/{field.name}"
            if field.metadata.get("pytree_node", True):
                found |= _statics(path, inner)
            else:
                found |= _plain(path, inner)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            found |= _statics(f"{name}/{key}", inner)
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            found |= _statics(f"{name}/{index}", inner)
    return found


def _plain(name: str, value: Any) -> dict[str, str]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {name: repr(value)}
    found: dict[str, str] = {}
    for field in dataclasses.fields(value):
        found |= _plain(f"{name}.{field.name}", getattr(value, field.name))
    return found


# ---- in tests ----------------------------------------------------------------------------------------------------


class _Explanations(logging.Handler):
    """What jax says of a function that it traces anew (`jax_explain_cache_misses`)."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("TRACING CACHE MISS"):
            self.texts.append(text)


@contextmanager
def no_recompilation() -> Iterator[None]:
    """A block in which everything is warm. Raises RecompilationError, naming every program that is compiled in it, with what
    jax says of the difference."""
    explanations, logger = _Explanations(), logging.getLogger("jax")
    logger.addHandler(explanations)
    try:
        with jax.explain_cache_misses(True), compilations() as found:
            yield
    finally:
        logger.removeHandler(explanations)
    if found:
        names = ", ".join(f"{compiled.function} ({compiled.seconds:.1f}s)" for compiled in found)
        raise RecompilationError("\n".join([f"expected warm programs, found compiled: {names}", *explanations.texts]))
