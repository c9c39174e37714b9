"""What every section of the schema is made of: typed fields, and errors that name them as the command line spells them."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import field
from typing import Any, ClassVar, Literal

from jaxlm.contract import InputError


class ConfigError(InputError):
    """An impossible value of a field. `field` is its dotted name, as on the command line."""

    def __init__(self, field: str, expected: str, found: object):
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"{flag(field)}: expected {expected}, found {found!r}")


def flag(dotted: str) -> str:
    """The command-line spelling of a field: `model.n_layers` -> `--model.n-layers`."""
    return "--" + dotted.replace("_", "-")


def runtime(default: Any) -> Any:
    """A field that changes no number of a run, and so stays out of the fingerprint."""
    return field(default=default, metadata={"runtime": True})


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The type of every name that a section annotates."""
    return typing.get_type_hints(kind)


def words_of(kind: Any) -> str:
    """A type in words, for messages."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    names = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    if typing.get_origin(kind) is tuple:
        return "one or more words (a tuple, in a config file)"
    return names.get(kind, f"a {kind.__name__}")


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type of a field. True is no integer."""
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


class Section:
    """One section of `RunConfig`. Every value is judged when it is made: first its type, then what the section says of it."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        section: Any = type(self)
        for f in dataclasses.fields(section):
            kind, value = hints(section)[f.name], getattr(self, f.name)
            if isinstance(value, int) and not isinstance(value, bool):
                self.require(abs(value) < 1 << 63, f.name, "a number of 64 bits")
                if kind is float:  # 1 and 1.0 are one value, and have one fingerprint
                    value = float(value)
                    object.__setattr__(self, f.name, value)
            self.require(fits(value, kind), f.name, words_of(kind))
        self._judge()

    def _judge(self) -> None:
        """Raise ConfigError for a value, or values together, that cannot be. Types are right by now."""

    def require(self, ok: bool, name: str, expected: str) -> None:
        """Raise ConfigError, with the dotted name of the field, where `ok` is false."""
        if not ok:
            dotted = f"{self.section}.{name}" if self.section else name
            raise ConfigError(dotted, expected, getattr(self, name))

    def require_at_least(self, low: float, *names: str) -> None:
        """Raise ConfigError for the first of the fields that is no finite number >= `low`."""
        for name in names:
            value = getattr(self, name)
            self.require(math.isfinite(value) and value >= low, name, f"a number >= {low}")
