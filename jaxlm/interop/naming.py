"""The names of all tokens in files that write bytes in GPT-2's characters, special tokens as they are."""

from __future__ import annotations

from jaxlm.contract import InputError
from jaxlm.interop import byte_alphabet
from jaxlm.tokenizer import Tokenizer


def names_of(tokenizer: Tokenizer, format: str) -> dict[str, int]:
    """Name -> id, in order of ids. Raises InputError where a special token has the name of another token."""
    special = {number: text for text, number in tokenizer.special_ids.items()}
    names: dict[str, int] = {}
    for number, token in sorted(tokenizer.vocab.items()):
        name = special[number] if number in special else byte_alphabet.written(token)
        if name in names:
            raise InputError(
                f"{format}: expected a name of its own for every token, found {name!r} for the ids {names[name]} and {number}, "
                "one of which is a special token; no file of this format can hold both"
            )
        names[name] = number
    return names
