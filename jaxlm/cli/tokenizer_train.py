"""Learn the merges of a tokenizer from text, and write it.

  jaxlm tokenizer train --out tok --data.source corpus/
  jaxlm tokenizer train --out tok tiny --tokenizer.vocab-size 32000

It is trained on the training split of the text, the same that `jaxlm train`
would train a model on.
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output
from jaxlm.config.load import load_config
from jaxlm.config.overrides import apply_overrides
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError, new_artifact

SECTIONS, CONFIG = ("tokenizer", "data"), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer train`."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a config, where the fields below are not enough")
    parser.add_argument("--out", help="the directory of the new tokenizer")


def run(args: argparse.Namespace, out: Output) -> int:
    """Train and save."""
    from jaxlm.data import Counts, training_texts
    from jaxlm.tokenizer import train_from_config

    if not args.out:
        raise InputError("--out: expected the directory of the new tokenizer, found nothing")
    base = load_config(args.config) if args.config else RunConfig()
    config = apply_overrides(base, args.overrides, only=SECTIONS)
    counts = Counts()
    with new_artifact(args.out) as folder:  # refused before the work, not after it
        tokenizer = train_from_config(training_texts(config.data, counts), config.tokenizer, progress=True)
        tokenizer.save_into(folder)
    if counts.invalid_utf8:
        found = f"{counts.invalid_utf8} of {counts.documents} documents held bytes that are no UTF-8, replaced by U+FFFD"
        out.warn(f"jaxlm: warning: {found}; --strict refuses them")
    out.line(f"{args.out}: {tokenizer.vocab_size} tokens, {tokenizer.fingerprint}")
    made = {"tokenizer": args.out, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
    out.result({**made, "documents_repaired": counts.invalid_utf8})
    return 0
