"""JSON as files of tokenizers must be: UTF-8, no name twice in an object, and every value of the type that is expected."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from jaxlm.contract import InputError
from jaxlm.interop.refusing import damaged

T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises InputError where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path}: expected a file of a tokenizer, found none") from None


def read_text(path: Path) -> str:
    """The content of a file as UTF-8. Raises ContractError where it is none, InputError where there is no file."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start}", expected="UTF-8", found=f"{error.object[error.start]:#04x}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ContractError for anything else, and where it names something twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise damaged(path, repr(twice), expected="different names in a JSON object", found=f"{twice!r} twice")
        return found

    text = read_text(path)
    try:
        body = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise damaged(path, place, expected="JSON", found=error.msg) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise damaged(path, "some place", expected="JSON", found=str(error)) from None
    return typed(body, dict, path=path, place="the top")


def typed(value: Any, kind: type[T], *, path: object, place: str) -> T:
    """`value`, if it is of the type `kind`; a bool is no int. Raises ContractError otherwise."""
    if type(value) is not kind:
        found = "null" if value is None else f"{type(value).__name__} {value!r}"
        raise damaged(path, place, expected=f"a value of type {kind.__name__}", found=found)
    return value
