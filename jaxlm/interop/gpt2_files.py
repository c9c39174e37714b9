"""GPT-2's `vocab.json` and `merges.txt` in one directory, and the `tokenizer_config.json` that `transformers` puts there.

The first two hold no pattern, so they are written for the pattern of GPT-2 alone, which is what is used for them elsewhere.
Nor do they say which entries are special tokens: that is the part of the third, or of what older versions of `transformers` put
there (`beside`); without any it is `<|endoftext|>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlm.contract import InputError, new_artifact
from jaxlm.interop import byte_alphabet
from jaxlm.interop.added_tokens import added_token, special_ids_of
from jaxlm.interop.assembling import assembled, require_special
from jaxlm.interop.beside import ADDED, CONFIG, Beside
from jaxlm.interop.hf_json import ids_of
from jaxlm.interop.last_merge import Merge
from jaxlm.interop.naming import names_of
from jaxlm.interop.refusing import damaged, unsupported
from jaxlm.interop.strict_json import read_object, read_text, typed
from jaxlm.tokenizer import Tokenizer

FORMAT = "vocab.json+merges.txt"
VOCAB, MERGES = "vocab.json", "merges.txt"
HEADER = "#version: 0.2"
DEFAULT_SPECIAL = "<|endoftext|>"
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")  # others cut text otherwise: Qwen's files have the same two names


def read_gpt2_files(
    directory: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    special_tokens: Sequence[str] | Mapping[str, int] | None = None,
    document_token: str | None = None,
    vocab: str = VOCAB,
    merges: str = MERGES,
) -> Tokenizer:
    """The tokenizer of a directory with `vocab.json` and `merges.txt`, with its ids.

    pattern: a name in `PATTERNS`, "gpt2" by default. special_tokens: texts, with the ids of vocab.json or those after its
    largest, or texts with their ids; by default what the files of `transformers` beside them state, else `<|endoftext|>`.
    document_token: the one that opens and closes documents; by default that which tokenizer_config.json has as both bos_token
    and eos_token, then as for `tokenizer.json`. vocab, merges: other names of the two files.
    Raises InputError for what no tokenizer here can do, ContractError for damaged files.
    """
    root = Path(directory)
    path = root / vocab
    entries = {text: typed(number, int, path=path, place=repr(text)) for text, number in read_object(path).items()}
    pairs = _merges_of(root / merges)
    beside = Beside.of(root)
    if pattern is None and beside.config.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
        found = repr(beside.config["tokenizer_class"])
        mend = "if you know what it does, give pattern"
        raise unsupported(root / CONFIG, "tokenizer_class", expected=_CLASSES[0], found=found, mend=mend)
    special_ids = _stated(beside, entries) if special_tokens is None else _given(path, special_tokens, entries)
    if document_token is None and special_tokens is None:
        document_token = beside.document_token()
    return assembled(
        path,
        ids=ids_of(path, entries, special_ids, place="the object"),
        merges=pairs,
        special_ids=special_ids,
        pattern=pattern or "gpt2",
        document_token=document_token,
        format=FORMAT,
    )


def write_gpt2_files(tokenizer: Tokenizer, directory: str | os.PathLike[str]) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` into a new directory, whole or not at all.

    The first two are, byte for byte, as `tokenizers` writes them; `GPT2Tokenizer.from_pretrained(directory)` of `transformers`
    gives the same ids. Raises InputError for another pattern than GPT-2's, for a merge that readers take for a header, where a
    special token is named as another token is, or where the directory is in use.
    """
    if tokenizer.pattern != "gpt2":
        raise InputError(
            f"{FORMAT}: expected a tokenizer with the pattern gpt2, found {tokenizer.pattern}, of which these files could not "
            "tell, and which readers would replace by gpt2; write it as tokenizer.json"
        )
    names = names_of(tokenizer, FORMAT)
    lines = [HEADER, *(f"{byte_alphabet.written(a)} {byte_alphabet.written(b)}" for a, b in tokenizer.merges)]
    if header_like := [line for line in lines[1:] if line.startswith("#version")]:
        raise InputError(
            f"{FORMAT}: expected merges that do not begin with #version, found {header_like[0]!r}, which readers leave out "
            "as a header; write it as tokenizer.json"
        )
    special = sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
    document = tokenizer.special_tokens[0] if tokenizer.special_tokens else None
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): added_token(text) for text, number in special},
        "bos_token": document,
        "eos_token": document,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": document,
    }
    with new_artifact(directory) as temporary:
        (temporary / VOCAB).write_bytes(json.dumps(names, ensure_ascii=False, separators=(",", ":")).encode())
        (temporary / MERGES).write_bytes("".join(f"{line}\n" for line in lines).encode())
        (temporary / CONFIG).write_bytes((json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode())


def _merges_of(path: Path) -> list[Merge]:
    """The merges of a `merges.txt`; its first line is a header only if it begins with #version: "# #" is a merge."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    merges: list[Merge] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#version"):
            if number > 1:  # some readers leave such a line out wherever it is
                raise unsupported(path, f"line {number}", expected="#version in the first line only", found=repr(line))
            continue
        tokens = [byte_alphabet.read(part) for part in line.split(" ")]
        if len(tokens) != 2 or tokens[0] is None or tokens[1] is None:
            raise damaged(path, f"line {number}", expected="two tokens in GPT-2's characters", found=repr(line))
        merges.append((tokens[0], tokens[1]))
    return merges


def _given(path: Path, special_tokens: Sequence[str] | Mapping[str, int], entries: Mapping[str, int]) -> dict[str, int]:
    """Special tokens as the caller names them. Raises InputError where an id is not that of vocab.json."""
    require_special(path, special_tokens)
    if isinstance(special_tokens, Mapping):
        for text, number in special_tokens.items():
            if entries.get(text, number) != number:
                found = f"{entries[text]} in the file"
                raise unsupported(path, repr(text), expected=f"id {number}, as special_tokens has it", found=found)
        return dict(special_tokens)
    following = max(entries.values(), default=-1) + 1
    absent = [text for text in dict.fromkeys(special_tokens) if text not in entries]
    numbers = {**entries, **{text: following + at for at, text in enumerate(absent)}}
    return {text: numbers[text] for text in special_tokens}


def _stated(beside: Beside, entries: Mapping[str, int]) -> dict[str, int]:
    """Special tokens as the files beside state them: all in added_tokens_decoder, or, as older ones do, by ids and roles."""
    if (listed := beside.listed()) is not None:
        special = special_ids_of(beside.root / CONFIG, listed, entries)
    else:
        special = {text: number for text, number in entries.items() if text == DEFAULT_SPECIAL}
        for text, number in beside.added.items():
            if (known := entries.get(text, number)) != number:
                raise damaged(beside.root / ADDED, repr(text), expected=f"id {known}, as in {VOCAB},", found=number)
            special[text] = number
        special |= {text: entries[text] for _, _, text in beside.named if text in entries}
    beside.require_known(special, mend="give special_tokens")
    return special
