"""How a file is refused: by its name, the place in it, what was expected and what is there."""

from __future__ import annotations

from jaxlm.contract import ContractError, InputError


def unsupported(path: object, place: str, *, expected: str, found: str, mend: str = "") -> InputError:
    """A sound file that says what no tokenizer here can do, or needs what was not given."""
    text = f"{path}: {place}: expected {expected}, found {found}"
    return InputError(f"{text}; {mend}" if mend else text)


def damaged(path: object, place: str, *, expected: object, found: object) -> ContractError:
    """A file that contradicts itself, or is none of its format."""
    remedy = "Restore it from a copy, or get it again."
    return ContractError("tokenizer", artifact=path, expected=f"{expected} at {place}", found=shortened(found), remedy=remedy)


def shortened(value: object, most: int = 200) -> str:
    """`value` for a message, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
