"""Print the text that ids stand for.

  jaxlm tokenizer decode tok 284 257 13
  jaxlm tokenizer encode tok "some text" | jaxlm tokenizer decode tok -

  jaxlm tokenizer encode tok --file a | jaxlm tokenizer decode tok - --out b

Bytes that are no UTF-8 are shown as U+FFFD; --out writes every byte as it is,
with - to standard output.
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import STDIO, Output
from jaxlm.cli.tokenizer_reading import add_format_arguments, read, stdin_bytes
from jaxlm.contract import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer decode`."""
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a directory of jaxlm, or a file of another project")
    parser.add_argument("ids", nargs="*", metavar="ID", help="ids; - alone reads them from standard input")
    parser.add_argument(
        "--out", metavar="OUT", help="write the bytes, and nothing else, to this new file; - is standard output"
    )
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Decode."""
    words = args.ids
    if not words:
        raise InputError(
            "jaxlm tokenizer decode: expected a tokenizer directory and ids (or - for standard input), found no ids"
        )
    if args.out == STDIO and out.as_json:
        raise InputError(f"--out: expected a file beside --json, which prints one object and nothing else, found {STDIO}")
    if words == [STDIO]:
        words = stdin_bytes().decode(errors="replace").split()
    tokenizer = read(args.tokenizer, args)
    known, ids = tokenizer.vocab, []
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) < 20 and int(word) in known):
            raise InputError(f"{word[:40]}: expected an id in {tokenizer.vocabulary.range}")
        ids.append(int(word))
    if args.out == STDIO:
        out.raw(tokenizer.decode_bytes(ids))
        return 0
    if args.out is not None:
        from jaxlm.cli.output import write_new

        raw = tokenizer.decode_bytes(ids)
        write_new(args.out, raw, option="--out")
        out.line(f"{args.out}: {len(raw)} bytes")
        out.result({"out": args.out, "bytes": len(raw)})
        return 0
    text = tokenizer.decode(ids)
    out.line(text)
    out.result({"text": text})
    return 0
