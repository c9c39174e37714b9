"""Write a tokenizer in another format, and read it back to see that its ids
are the same.

  jaxlm tokenizer convert tok tokenizer.json
  jaxlm tokenizer convert tok gpt2-files --format vocab.json+merges.txt
  jaxlm tokenizer convert o200k_base.tiktoken tok --format jaxlm \\
      --pattern o200k --special-tokens "<|endoftext|>=199999"

tokenizer.json is read by tokenizers and transformers; vocab.json and merges.txt
are a directory, as GPT-2's; .tiktoken holds ranks only, so that its pattern and
special tokens are stated when it is read. `--special-tokens` takes all words
that follow it. Without --format, the suffix of TO tells it (.json, .tiktoken),
and FROM is what it looks like. Nothing is ever written over.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.output import STDIO, Output
from jaxlm.cli.tokenizer_reading import add_format_arguments, read
from jaxlm.contract import ContractError, InputError

if TYPE_CHECKING:
    from jaxlm.tokenizer import Tokenizer

OWN = "jaxlm"
FORMATS = ("tokenizer.json", "vocab.json+merges.txt", "tiktoken", OWN)
SUFFIXES = {".json": "tokenizer.json", ".tiktoken": "tiktoken"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer convert`."""
    parser.add_argument("tokenizer", metavar="FROM", help="a directory of jaxlm, or a file of another project")
    parser.add_argument("target", metavar="TO", help="the new file, or the new directory")
    parser.add_argument("--format", choices=FORMATS, metavar="FORMAT", help=f"of TO, {', '.join(FORMATS)}")
    parser.add_argument("--from-format", choices=FORMATS, metavar="FORMAT", help="of FROM, the same")
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Convert and compare."""
    if args.target == STDIO:
        raise InputError(f"TO: expected a new file or directory, found {STDIO}; ./{STDIO} is a file of that name")
    form = args.format or SUFFIXES.get(Path(args.target).suffix)
    if form is None:
        raise InputError(f"--format: expected one of {', '.join(FORMATS)}, since {args.target!r} does not tell it; found none")
    tokenizer = read(args.tokenizer, args, form=args.from_format)
    if form == OWN:
        tokenizer.save(args.target)
    else:
        from jaxlm.interop import write_tokenizer

        write_tokenizer(tokenizer, args.target, format=form)
    compared = _require_equal(tokenizer, args.target, form)
    out.line(f"{args.target}: {form}, {tokenizer.vocab_size:,} ids; read back, the ids of {compared} texts are equal")
    if form == "tiktoken":
        special = " ".join(f"'{text}={number}'" for text, number in tokenizer.special_ids.items())
        out.line(
            f"it holds neither pattern nor special tokens: --pattern {tokenizer.pattern} --special-tokens {special}".rstrip()
        )
    out.result(
        {
            "from": args.tokenizer,
            "to": args.target,
            "format": form,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "pattern": tokenizer.pattern,
            "special_tokens": tokenizer.special_ids,
            "texts_compared": compared,
        }
    )
    return 0


def read_back(tokenizer: Tokenizer, path: str, form: str) -> Tokenizer:
    """What `path` holds, told what its format does not state."""
    if form == OWN:
        return type(tokenizer).load(path)
    from jaxlm.interop import read_tokenizer

    first = next(iter(tokenizer.special_tokens), None)
    ranks_only = form == "tiktoken"
    return read_tokenizer(
        path,
        format=form,
        pattern=tokenizer.pattern if ranks_only else None,
        special_tokens=tokenizer.special_ids if ranks_only else None,
        document_token=first,
    )


def _require_equal(tokenizer: Tokenizer, path: str, form: str) -> int:
    """How many texts gave equal ids. Removes what was written and raises ContractError where anything differs."""
    from jaxlm.tokenizer.artifact import PROBE
    from jaxlm.tokenizer.samples import SAMPLES

    try:
        again = read_back(tokenizer, path, form)
        texts = [PROBE, *(sample.text for sample in SAMPLES)]
        differs = [text for text in texts if tokenizer.encode(text, "all") != again.encode(text, "all")]
        differs += [text for text in texts if tokenizer.encode_ordinary(text) != again.encode_ordinary(text)]
        found = f"others for {len(differs)}" if differs else "another vocabulary" if again.vocab != tokenizer.vocab else ""
        if found:
            raise ContractError("tokenizer", artifact=path, expected=f"the ids of {len(texts)} texts, read back", found=found)
    except BaseException:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
        raise
    return len(texts)
