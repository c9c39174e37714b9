"""Hugging Face's `tokenizer.json`, of models of type BPE over bytes.

Anything in it that would change ids and is not known here is refused by name. What `tokenizers` does to text and what is done
here differs in two points, which are no matter of the file. It takes added tokens in any text for what they stand for, and this
`encode` does so for those that are allowed: so all added tokens become special tokens, those with `"special": false` too, since
`tokenizers` finds both in the same way. And where a template adds tokens around the text (TemplateProcessing), documents here
open and close by their own rule (`encode_document`), and `encode` adds none, as `encode(..., add_special_tokens=False)` there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.interop import byte_alphabet
from jaxlm.interop.added_tokens import added_token, special_ids_of
from jaxlm.interop.assembling import assembled
from jaxlm.interop.hf_steps import pattern_of, pre_tokenizer_of, require_known_steps
from jaxlm.interop.last_merge import Merge, first_broken
from jaxlm.interop.naming import names_of
from jaxlm.interop.refusing import damaged, shortened, unsupported
from jaxlm.interop.strict_json import read_object, typed
from jaxlm.interop.writing import new_file
from jaxlm.tokenizer import Tokenizer

FORMAT = "tokenizer.json"

# Fields of the model, each with the values that change no ids; None for those read elsewhere. An unknown token cannot occur,
# since every byte has an entry.
_MODEL: dict[str, tuple[Any, ...] | None] = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "unk_token": None,
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": None,
    "byte_fallback": (None, False),
    "ignore_merges": (None, False, True),
    "vocab": None,
    "merges": None,
}


def read_tokenizer_json(path: str | os.PathLike[str], *, document_token: str | None = None) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, with its ids.

    document_token: the special token that opens and closes documents; by default `<|endoftext|>`, `<|begin_of_text|>`, `<s>`,
    or the one of the lowest id. Raises InputError for what no tokenizer here can do, ContractError for a damaged file.
    """
    path = Path(path)
    body = read_object(path)
    require_known_steps(path, body)
    model = typed(body.get("model"), dict, path=path, place="model")
    _require_known_model(path, model)
    pattern = pattern_of(path, body.get("pre_tokenizer"))
    vocab = {
        text: typed(number, int, path=path, place=f"model.vocab[{text!r}]")
        for text, number in typed(model.get("vocab"), dict, path=path, place="model.vocab").items()
    }
    special_ids = special_ids_of(path, body.get("added_tokens"), vocab)
    ids = ids_of(path, vocab, special_ids, place="model.vocab")
    merges = [
        _merge_of(path, rank, merge)
        for rank, merge in enumerate(typed(model.get("merges"), list, path=path, place="model.merges"))
    ]
    if model.get("ignore_merges"):
        _require_idle_shortcut(path, ids, merges, special_ids, vocab)
    return assembled(
        path,
        ids=ids,
        merges=merges,
        special_ids=special_ids,
        pattern=pattern,
        document_token=document_token,
        format=FORMAT,
    )


def write_tokenizer_json(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write a `tokenizer.json` that gives the same ids in `tokenizers` and `transformers`, byte for byte as they write it.

    The vocabulary in it holds the special tokens too, since `tokenizers` gives ids of its own to those that it lacks. It does
    not say which special token opens documents. Raises InputError where the file is there, or names would meet in it.
    """
    special = sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **added_token(text)} for text, number in special],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_of(tokenizer.pattern),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": names_of(tokenizer, FORMAT),
            "merges": [[byte_alphabet.written(a), byte_alphabet.written(b)] for a, b in tokenizer.merges],
        },
    }
    new_file(path, json.dumps(body, indent=2, ensure_ascii=False).encode())


def ids_of(path: Path, vocab: Mapping[str, int], special_ids: Mapping[str, int], *, place: str) -> dict[bytes, int]:
    """The ids of a vocabulary in GPT-2's characters, without special tokens. Raises ContractError for an id twice."""
    owners: dict[int, str] = {}
    ids: dict[bytes, int] = {}
    for text, number in vocab.items():
        if number in owners:
            found = f"{number} of {owners[number]!r} too"
            raise damaged(path, f"{place}[{text!r}]", expected="an id of its own", found=found)
        owners[number] = text
        if text in special_ids:
            continue
        token = byte_alphabet.read(text)
        if token is None:
            expected = "entries in GPT-2's characters for bytes, or added tokens"
            raise unsupported(path, place, expected=expected, found=shortened(repr(text)))
        ids[token] = number
    return ids


def _require_known_model(path: Path, model: Mapping[str, Any]) -> None:
    if "type" not in model and "merges" not in model:
        raise unsupported(path, "model.type", expected="BPE", found="none")
    for name, value in model.items():
        if name not in _MODEL:
            raise unsupported(path, f"model.{name}", expected="no such field", found=shortened(repr(value)))
        allowed = _MODEL[name]
        if allowed is not None and not any(value == one and type(value) is type(one) for one in allowed):
            expected = " or ".join(json.dumps(one) for one in allowed)
            raise unsupported(path, f"model.{name}", expected=expected, found=shortened(json.dumps(value)))


def _merge_of(path: Path, rank: int, merge: Any) -> Merge:
    """A merge as a list of two, or as older files have it, with a space between."""
    place = f"model.merges[{rank}]"
    parts = merge.split(" ") if isinstance(merge, str) else typed(merge, list, path=path, place=place)
    tokens = [byte_alphabet.read(part) if isinstance(part, str) else None for part in parts]
    if len(tokens) != 2 or tokens[0] is None or tokens[1] is None:
        raise damaged(path, place, expected="two tokens in GPT-2's characters", found=repr(merge))
    return tokens[0], tokens[1]


def _require_idle_shortcut(
    path: Path, ids: Mapping[bytes, int], merges: list[Merge], special_ids: Mapping[str, int], vocab: Mapping[str, int]
) -> None:
    """`ignore_merges` takes a pre-token that is an entry for that entry: no matter, where merging gives the same."""
    place = "model.ignore_merges"
    if broken := first_broken(ids, merges):
        token, parts = broken
        found = f"true, and {token!r} with id {ids[token]}, which merges leave in {len(parts)} parts, {shortened(repr(parts))}"
        raise unsupported(path, place, expected="false, or merges that make every entry", found=found)
    for text in special_ids:
        if text in vocab and byte_alphabet.read(text) not in (None, text.encode()):
            found = f"true, and the added token {text!r}, which is how {byte_alphabet.read(text)!r} is written"
            raise unsupported(path, place, expected="false", found=found)
