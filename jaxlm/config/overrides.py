"""Command-line overrides: `--model.n-layers 4`, typed by the dataclasses of the schema through tyro.

Names are compared with the schema first, so that a misspelt one is answered with the nearest right one; values are then read
by tyro, one by one; the sections are rebuilt last, all at once, so that fields that depend on each other are judged together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.config.schema import RunConfig, sections
from jaxlm.config.section import ConfigError, flag, hints, words_of
from jaxlm.contract import InputError


def field_types() -> dict[str, Any]:
    """Type of every field that can be overridden, by dotted name."""
    types: dict[str, Any] = {}
    nested: dict[str, Any] = sections()
    for name in (f.name for f in dataclasses.fields(RunConfig)):
        if name in nested:
            types |= {f"{name}.{f.name}": hints(nested[name])[f.name] for f in dataclasses.fields(nested[name])}
        else:
            types[name] = hints(RunConfig)[name]
    return types


def collect(arguments: Sequence[str], types: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Arguments as dotted name -> words. `--a.b c`, `--a.b=c`, `--a.b c d` and `--no-a.b` (or `--a.no-b`) are understood.

    Raises InputError for a word that belongs to no flag, an unknown name (naming the nearest), or a name given twice.
    """
    types = field_types() if types is None else types
    found: dict[str, list[str]] = {}
    words: list[str] | None = None
    for argument in arguments:
        if not argument.startswith("--"):
            if words is None:
                raise InputError(f"{argument!r}: expected an override such as --train.steps 100, found a word without a flag")
            words.append(argument)
            continue
        spelt, equals, value = argument[2:].partition("=")
        name, negated = _named(spelt, types)
        if name in found:
            raise InputError(f"{flag(name)}: expected once, found twice")
        words = found[name] = ([value] if equals else []) + (["False"] if negated else [])
        if negated and equals:
            raise InputError(f"--{spelt}: expected no value, found {value!r}")
    return found


def _named(spelt: str, types: Mapping[str, Any]) -> tuple[str, bool]:
    """The field that a flag means, and whether it is negated (`--no-...` of a boolean)."""
    name = spelt.replace("-", "_")
    if name in types:
        return name, False
    for positive in (name.removeprefix("no_"), name.replace(".no_", ".", 1)):
        if positive != name and types.get(positive) is bool:
            return positive, True
    raise InputError(f"--{spelt}: expected a field of the config, found none of that name; {nearest(name, types)}")


def nearest(name: str, types: Mapping[str, Any]) -> str:
    """Which flag was probably meant, in words."""
    last: dict[str, str] = {}
    for field in types:
        last.setdefault(field.rpartition(".")[2], field)
    tail = name.rpartition(".")[2]
    if tail in last:
        return "the nearest is " + " or ".join(flag(field) for field in types if field.rpartition(".")[2] == tail)
    close = difflib.get_close_matches(name, types, n=1, cutoff=0.5) if "." in name else []
    close = close or [last[within] for within in difflib.get_close_matches(tail, last, n=1, cutoff=0.6)]
    return f"the nearest is {flag(close[0])}" if close else "`jaxlm train CONFIG --help` lists them"


def parse(name: str, words: Sequence[str], kind: Any) -> Any:
    """The value that `words` spell for a field of type `kind`. Raises ConfigError."""
    import tyro

    if kind is bool and not words:
        return True
    if not words:
        raise ConfigError(name, words_of(kind), "nothing")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return tyro.cli(kind, args=list(words), console_outputs=False)
        except SystemExit:
            bad = True
    assert bad
    raise ConfigError(name, words_of(kind), " ".join(words))


def apply_overrides(config: RunConfig, arguments: Sequence[str], *, only: Sequence[str] = ()) -> RunConfig:
    """`config` with the overrides of a command line. only: sections that may be overridden; empty: all.

    Raises InputError or ConfigError, in one line that names the field.
    """
    types = field_types()
    if only:
        types = {name: kind for name, kind in types.items() if name.partition(".")[0] in only}
    changes: dict[str, dict[str, Any]] = {}
    for name, words in collect(arguments, types).items():
        section, _, field = name.rpartition(".")
        changes.setdefault(section, {})[field] = parse(name, words, types[name])
    top = changes.pop("", {})
    rebuilt = {section: dataclasses.replace(getattr(config, section), **fields) for section, fields in changes.items()}
    return dataclasses.replace(config, **top, **rebuilt)
