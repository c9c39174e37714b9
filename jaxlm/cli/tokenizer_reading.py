"""What the actions of `jaxlm tokenizer` read: tokenizers in any format, and the texts that they are given."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.arguments import utf8
from jaxlm.cli.output import STDIO
from jaxlm.config.overrides import apply_overrides, collect
from jaxlm.config.schema import DataConfig, RunConfig, TokenizerConfig
from jaxlm.config.section import hints
from jaxlm.contract import MANIFEST, InputError

if TYPE_CHECKING:
    from jaxlm.tokenizer import Tokenizer

OWN_FILES = (MANIFEST, "bpe.json")  # of an artifact, whose name is that of its directory
PATTERNS = typing.get_args(hints(TokenizerConfig)["pattern"])


# ---- tokenizers --------------------------------------------------------------------------------------------------


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """What files of other projects do not say of themselves."""
    group = parser.add_argument_group("of files of other projects, which do not state it themselves")
    group.add_argument("--pattern", choices=PATTERNS, help=f"pre-token pattern: {', '.join(PATTERNS)}", metavar="NAME")
    group.add_argument(
        "--special-tokens",
        type=utf8,
        nargs="*",
        metavar="TEXT[=ID]",
        help="special tokens, with all ids or none; no words for none",
    )
    group.add_argument("--document-token", type=utf8, metavar="TEXT", help="the special token that opens and closes documents")


def read(path: str, args: argparse.Namespace, *, form: str | None = None, as_far_as_needed: bool = False) -> Tokenizer:
    """The tokenizer at `path`: an artifact, or a file of another project, read as `args` say.

    form: its format, None: found out. as_far_as_needed: leave out what the file states itself, where it would be refused.
    Raises InputError where there is no tokenizer, ContractError for a damaged artifact.
    """
    options = {name: getattr(args, name) for name in ("pattern", "special_tokens", "document_token")}
    if not Path(path).exists():
        raise InputError(f"{path}: expected a tokenizer (a directory of jaxlm, or a file of another project), found nothing")
    if Path(path).name in OWN_FILES and Path(path).parent.joinpath(MANIFEST).is_file():
        raise InputError(f"{path}: expected the directory of the tokenizer, found a file of it; give {Path(path).parent}")
    if form in (None, "jaxlm") and Path(path, MANIFEST).exists():
        from jaxlm.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(path)
        given = [name for name, value in options.items() if value is not None]
        if given and not as_far_as_needed:
            option = f"--{given[0].replace('_', '-')}"
            raise InputError(
                f"{option}: expected for files of other projects only, found it for {path}, which states it itself"
            )
        return tokenizer
    if form == "jaxlm":
        raise InputError(f"{path}: expected an artifact of jaxlm (a directory with {MANIFEST}), found none")
    from jaxlm.interop import read_tokenizer
    from jaxlm.interop.formats import detected

    options["special_tokens"] = special_tokens(args.special_tokens)
    if as_far_as_needed and detected(Path(path)) == "tokenizer.json":
        options["pattern"] = options["special_tokens"] = None
    return read_tokenizer(path, format=form, **options)


def special_tokens(words: Sequence[str] | None) -> list[str] | dict[str, int] | None:
    """Texts, or texts and their ids where every word ends in `=ID`; None for no words."""
    if not words:
        return words if words is None else []
    parts = [word.rpartition("=") for word in words]
    numbered = [bool(text) and number.isascii() and number.isdecimal() for text, _, number in parts]
    if all(numbered):
        return {text: int(number) for text, _, number in parts}
    if any(numbered):
        found = words[numbered.index(False)]
        raise InputError(f"--special-tokens: expected ids for all of them or for none, found {found!r} without one")
    return list(words)


# ---- texts -------------------------------------------------------------------------------------------------------


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """A text in words, or in a file."""
    parser.add_argument("text", type=utf8, nargs="*", metavar="TEXT", help="words, joined by spaces; - alone: standard input")
    parser.add_argument("--file", metavar="PATH", help="read the text from a file in UTF-8; - is standard input")


def given_text(args: argparse.Namespace) -> str | None:
    """The text of the command line, of --file, or of standard input, every byte of it; None where none is named."""
    if args.file is not None and args.text:
        raise InputError(f"{args.text[0]}: expected words or --file, found both")
    if args.file is None and args.text != [STDIO]:
        return " ".join(args.text) if args.text else None
    path = STDIO if args.file is None else args.file
    raw = stdin_bytes() if path == STDIO else Path(path).read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason})"
        where = "standard input" if path == STDIO else path
        raise InputError(f"{where}: expected UTF-8, found {found}; convert it, with iconv for instance") from None


def stdin_bytes() -> bytes:
    """All of standard input. Raises InputError where it is closed."""
    if sys.stdin is None:
        raise InputError("-: expected standard input, found it closed")
    return sys.stdin.buffer.read()


def data_config(args: argparse.Namespace) -> DataConfig | None:
    """The data that the command line names with --data.source or --data.path; None where it names none."""
    named = collect(args.overrides)
    if not named:
        return None
    if not {"data.source", "data.path"} & named.keys():
        raise InputError(
            f"{args.overrides[0]}: expected --data.source or --data.path beside it, which name the data; found neither"
        )
    return apply_overrides(RunConfig(), args.overrides, only=("data",)).data


def documents(cfg: DataConfig) -> Iterator[str]:
    """The texts of --data.source, one after the other."""
    from jaxlm.data import read_documents

    if cfg.path:
        raise InputError(f"--data.path: expected texts (--data.source), found shards, {cfg.path}, which hold ids")
    return (document.text for document in read_documents(cfg))


def id_counts(cfg: DataConfig, tokenizer: Tokenizer) -> tuple[Any, int, int]:
    """How often each id occurs in the training shards of --data.path: int64 [V]; with their documents and bytes.

    Raises ContractError where another tokenizer made them.
    """
    import numpy as np

    from jaxlm.contract import check
    from jaxlm.data import open_shards

    shards = open_shards(cfg.path)
    check(tokenizer, shards)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for begin in range(0, len(shards.train), 1 << 22):
        counts += np.bincount(shards.train.slice(begin, begin + (1 << 22)), minlength=tokenizer.vocab_size)
    facts = shards.manifest.facts["splits"]["train"]
    return counts, facts["documents"], facts["bytes"]
