"""The fields of the config in `jaxlm VERB --help`, with what the schema says beside them.

The comment beside a field in `jaxlm/config/schema.py` is its one description: it is read from the source.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import shutil
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal

from jaxlm.config.schema import RunConfig, flag, sections

FIELD = re.compile(r"    (\w+): .*")
SECTION = re.compile(r"class (\w+)\(Section\):")
INDENT = 36  # columns before a field's meaning


@functools.cache
def meanings() -> Mapping[str, str]:
    """The comment beside every field, by `Class.field`."""
    found, inside = {}, ""
    source = resources.files("jaxlm.config").joinpath("schema.py").read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if (section := SECTION.match(token.line)) is not None:
            inside = section[1]
        if token.type == tokenize.COMMENT and inside and (field := FIELD.match(token.line)) is not None:
            found[f"{inside}.{field[1]}"] = token.string.removeprefix("#").strip()
    return found


def takes(kind: Any) -> str:
    """What a field of this type is given, in a word."""
    if typing.get_origin(kind) is Literal:
        return "WORD"
    return {int: "N", float: "X", str: "TEXT", bool: ""}.get(kind, "TEXT ...")


def listing(config: RunConfig, only: Sequence[str] = (), *, width: int | None = None) -> str:
    """The fields section by section, each with what it takes, its meaning, and in brackets its value in `config`.

    only: the sections to list; empty: all. width: columns; those of the terminal by default, at most 100.
    """
    width = width or min(shutil.get_terminal_size().columns, 100)
    lines: list[str] = []
    if not only:
        lines += ["", *_lines("", RunConfig, config, width)]
    for name, section in sections().items():
        if not only or name in only:
            title = (section.__doc__ or "").split("\n")[0]
            lines += ["", *textwrap.wrap(f"{name}: {title}", width), *_lines(name, section, getattr(config, name), width)]
    return "\n".join(lines[1:])


def _lines(name: str, section: type, values: Any, width: int) -> Iterator[str]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if not name and field.name in sections():
            continue
        kind, value = hints[field.name], getattr(values, field.name)
        head = f"  {flag(f'{name}.{field.name}' if name else field.name)} {takes(kind)}".rstrip()
        choices = f"{', '.join(typing.get_args(kind))}; " if typing.get_origin(kind) is Literal else ""
        shown = " ".join(value) if isinstance(value, tuple) else str(value)
        shown += f"; {flag(f'no_{name}.{field.name}')} for False" if value is True else ""
        text = f"{choices}{meanings()[f'{section.__name__}.{field.name}']} [{shown}]"
        wrapped = textwrap.wrap(text, width - INDENT, break_long_words=False, break_on_hyphens=False)
        if len(head) >= INDENT - 1:
            yield head
            head = ""
        yield f"{head:<{INDENT}}{wrapped[0]}"
        yield from (" " * INDENT + line for line in wrapped[1:])
