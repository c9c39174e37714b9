"""Added tokens, as Hugging Face's files list them: which ids they have, and which of them are like no special token here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from jaxlm.interop.refusing import damaged, shortened, unsupported
from jaxlm.interop.strict_json import typed

FLAGS = ("single_word", "lstrip", "rstrip")


def added_token(text: str) -> dict[str, Any]:
    """The entry of a special token, without its id."""
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def special_ids_of(path: Path, added: Any, vocab: Mapping[str, int]) -> dict[str, int]:
    """Text -> id of the added tokens of a `tokenizer.json`, without a normalizer.

    The id is that of the vocabulary. To tokens that it lacks `tokenizers` gives the numbers from its length on, whatever the
    file states, so both have to agree. Raises ContractError where they do not, InputError for a token that takes the spaces
    around it, is found in whole words only, or is found after others that it overlaps.
    """
    if added is None:
        return {}
    found: dict[str, int] = {}
    normalized: dict[str, bool] = {}
    following = len(vocab)
    for at, entry in enumerate(typed(added, list, path=path, place="added_tokens")):
        place = f"added_tokens[{at}]"
        entry = typed(entry, dict, path=path, place=place)
        text = typed(entry.get("content"), str, path=path, place=f"{place}.content")
        number = typed(entry.get("id"), int, path=path, place=f"{place}.id")
        require_plain(path, place, text, entry)
        if text in found:
            raise damaged(path, place, expected="different added tokens", found=f"{text!r} twice")
        if (wanted := vocab.get(text, following)) != number:
            whence = "as in model.vocab" if text in vocab else "the next that no entry of model.vocab has"
            raise damaged(path, f"{place}.id", expected=f"{wanted} for {text!r}, {whence},", found=number)
        following += text not in vocab
        found[text] = number
        normalized[text] = bool(entry.get("normalized", True))
    _require_one_pass(path, normalized)
    return found


def require_plain(path: Path, place: str, text: str, entry: Mapping[str, Any]) -> None:
    """Raises InputError for an added token with an option that no special token here has."""
    for flag in FLAGS:
        if entry.get(flag, False) is not False:
            raise unsupported(path, f"{place}.{flag}", expected="false", found=f"{entry[flag]!r} for {text!r}")
    if unknown := set(entry) - {"id", "content", "normalized", "special", *FLAGS}:
        name = sorted(unknown)[0]
        raise unsupported(path, f"{place}.{name}", expected="no such field", found=shortened(repr(entry[name])))


def _require_one_pass(path: Path, normalized: Mapping[str, bool]) -> None:
    """`tokenizers` looks for the tokens with normalized=false first, and for the others in what is left: the same as looking
    for all of them at once, where none overlaps one of the other kind."""
    late = [text for text, flag in normalized.items() if flag]
    early = [text for text, flag in normalized.items() if not flag]
    for a, b in product(late, early):
        if a in b or b in a or _meet(a, b) or _meet(b, a):
            found = f"{a!r} with true and {b!r} with false, which can overlap in a text"
            raise unsupported(path, "added_tokens.normalized", expected="one value for both", found=found)


def _meet(a: str, b: str) -> bool:
    """Whether the end of `a` is the beginning of `b`."""
    return any(a.endswith(b[:length]) for length in range(1, min(len(a), len(b))))
