"""Any of the formats by its name, or by what the path looks like."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlm.contract import MANIFEST, InputError
from jaxlm.interop import gpt2_files, hf_json, tiktoken_ranks
from jaxlm.interop.beside import Beside
from jaxlm.tokenizer import Tokenizer

FORMATS = (hf_json.FORMAT, gpt2_files.FORMAT, tiktoken_ranks.FORMAT)


def read_tokenizer(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    pattern: str | None = None,
    special_tokens: Sequence[str] | Mapping[str, int] | None = None,
    document_token: str | None = None,
) -> Tokenizer:
    """The tokenizer of a foreign file, with the same ids for every text.

    path: a `tokenizer.json`, a `.tiktoken` file, or a directory with `tokenizer.json` or with `vocab.json` and `merges.txt`, of
    which the other files that `transformers` puts there are read too.
    format: one of `FORMATS`, by default what the path looks like. pattern, special_tokens: for formats that hold none, see
    `read_gpt2_files` and `read_tiktoken`; a tokenizer.json states both. document_token: the special token that opens and closes
    documents; by default `<|endoftext|>`, `<|begin_of_text|>`, `<s>`, or the one of the lowest id.
    Raises InputError for what no tokenizer here can do or is not said, ContractError for a damaged file.
    """
    path = Path(path)
    format = _known(format) if format is not None else detected(path)
    if format == hf_json.FORMAT:
        if special_tokens is not None:
            found = "special_tokens as well; leave it out"
            raise InputError(f"{path}: expected special tokens as tokenizer.json states them, found {found}")
        file = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = hf_json.read_tokenizer_json(file, document_token=document_token)
        if pattern not in (None, tokenizer.pattern):
            raise InputError(f"{path}: expected the pattern {pattern}, found {tokenizer.pattern} in the file")
        if path.is_dir():
            mend = f"give {file} itself to leave out what lies beside it"
            Beside.of(path).require_known(tokenizer.special_ids, mend=mend)
        return tokenizer
    if format == gpt2_files.FORMAT:
        directory = path if path.is_dir() or path.name not in (gpt2_files.VOCAB, gpt2_files.MERGES) else path.parent
        return gpt2_files.read_gpt2_files(
            directory, pattern=pattern, special_tokens=special_tokens, document_token=document_token
        )
    return tiktoken_ranks.read_tiktoken(path, pattern=pattern, special_tokens=special_tokens, document_token=document_token)


def write_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str], *, format: str) -> None:
    """Write a tokenizer for other libraries, in one of `FORMATS`: a file, or for `vocab.json+merges.txt` a directory.

    What is there is never written over, and nothing is left half written. Raises InputError where the path is in use, or where
    the format could not hold the tokenizer with its ids.
    """
    write = {
        hf_json.FORMAT: hf_json.write_tokenizer_json,
        gpt2_files.FORMAT: gpt2_files.write_gpt2_files,
        tiktoken_ranks.FORMAT: tiktoken_ranks.write_tiktoken,
    }[_known(format)]
    write(tokenizer, path)


def detected(path: Path) -> str:
    """The format that a path looks like. Raises InputError where it looks like none."""
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return hf_json.FORMAT
        if (path / gpt2_files.VOCAB).is_file() and (path / gpt2_files.MERGES).is_file():
            return gpt2_files.FORMAT
        own = (path / MANIFEST).is_file()
        found = "an artifact of jaxlm, which needs no conversion; load it with Tokenizer.load" if own else "neither"
        raise InputError(f"{path}: expected tokenizer.json, or vocab.json and merges.txt in the directory, found {found}")
    if path.name in (gpt2_files.VOCAB, gpt2_files.MERGES):
        return gpt2_files.FORMAT
    if path.suffix == ".json":
        return hf_json.FORMAT
    if path.suffix == ".tiktoken":
        return tiktoken_ranks.FORMAT
    if not path.exists():
        raise InputError(f"{path}: expected the files of a tokenizer, found none")
    raise InputError(
        f"{path}: expected a name that tells the format ({', '.join(FORMATS)}), found {path.name!r}; rename it, or say "
        "which it is with `jaxlm tokenizer convert --from-format`"
    )


def _known(format: str) -> str:
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, found {format!r}")
    return format
