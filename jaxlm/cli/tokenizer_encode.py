"""Print the ids of a text.

  jaxlm tokenizer encode tok "some text"
  jaxlm tokenizer encode tok --file book.txt --numpy book.npy
  cat book.txt | jaxlm tokenizer encode tok -

Special tokens in the text are text like any other, unless --allow-special.
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output
from jaxlm.cli.tokenizer_reading import add_format_arguments, add_text_arguments, given_text, read
from jaxlm.contract import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer encode`."""
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a directory of jaxlm, or a file of another project")
    add_text_arguments(parser)
    parser.add_argument("--allow-special", action="store_true", help="special tokens in the text stand for their ids")
    parser.add_argument("--numpy", metavar="OUT", help="write the ids to this new file, as an int32 array for numpy.load")
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Encode."""
    if (text := given_text(args)) is None:
        raise InputError(
            "jaxlm tokenizer encode: expected a tokenizer directory and text (words, --file PATH, or -), found no text"
        )
    tokenizer = read(args.tokenizer, args)
    ids = tokenizer.encode_to_numpy(text, "all" if args.allow_special else None)
    if args.numpy is None:
        listed = ids.tolist()
        out.line(" ".join(map(str, listed)))
        out.result({"token_ids": listed})
        return 0
    import io

    import numpy as np

    from jaxlm.cli.output import write_new

    content = io.BytesIO()
    np.save(content, ids, allow_pickle=False)
    write_new(args.numpy, content.getvalue(), option="--numpy")
    out.line(f"{args.numpy}: {len(ids)} ids")
    out.result({"numpy": args.numpy, "tokens": len(ids)})
    return 0
