"""Train a tokenizer; encode and decode with it.

jaxlm tokenizer train --out tok --data.source corpus/
jaxlm tokenizer encode tok "some text"
jaxlm tokenizer decode tok 284 257 13
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output
from jaxlm.config.load import load_config
from jaxlm.config.overrides import apply_overrides
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError

SECTIONS, CONFIG = ("tokenizer", "data"), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer`."""
    parser.add_argument("action", choices=("train", "encode", "decode"))
    parser.add_argument("words", nargs="*", help="train: a config, or nothing; encode: DIR TEXT; decode: DIR ID...")
    parser.add_argument("--out", help="train: the directory of the new tokenizer")
    parser.add_argument("--allow-special", action="store_true", help="encode: special tokens in the text stand for their ids")


def run(args: argparse.Namespace, out: Output) -> int:
    """Train, encode or decode."""
    return {"train": _train, "encode": _encode, "decode": _decode}[args.action](args, out)


def _train(args: argparse.Namespace, out: Output) -> int:
    from jaxlm.data import training_texts
    from jaxlm.tokenizer import train_from_config

    if not args.out:
        raise InputError("--out: expected the directory of the new tokenizer, found nothing")
    if len(args.words) > 1:
        raise InputError(f"{args.words[1]}: expected one config at most")
    base = load_config(args.words[0]) if args.words else RunConfig()
    config = apply_overrides(base, args.overrides, only=SECTIONS)
    tokenizer = train_from_config(training_texts(config.data), config.tokenizer)
    tokenizer.save(args.out)
    out.line(f"{args.out}: {tokenizer.vocab_size} tokens, {tokenizer.fingerprint}")
    out.result({"tokenizer": args.out, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint})
    return 0


def _two(args: argparse.Namespace, what: str) -> tuple[str, list[str]]:
    if args.overrides:
        raise InputError(f"{args.overrides[0]}: expected no such option of `jaxlm tokenizer {args.action}`")
    if len(args.words) < 2:
        raise InputError(f"jaxlm tokenizer {args.action}: expected a tokenizer directory and {what}")
    return args.words[0], args.words[1:]


def _encode(args: argparse.Namespace, out: Output) -> int:
    from jaxlm.tokenizer import Tokenizer

    directory, words = _two(args, "text")
    tokenizer, text = Tokenizer.load(directory), " ".join(words)
    ids = tokenizer.encode(text, allowed_special="all") if args.allow_special else tokenizer.encode_ordinary(text)
    out.line(" ".join(map(str, ids)))
    out.result({"token_ids": ids})
    return 0


def _decode(args: argparse.Namespace, out: Output) -> int:
    from jaxlm.tokenizer import Tokenizer

    directory, words = _two(args, "ids")
    tokenizer = Tokenizer.load(directory)
    if wrong := [word for word in words if not word.isdecimal() or int(word) >= tokenizer.vocab_size]:
        raise InputError(f"{wrong[0]}: expected an id in 0..{tokenizer.vocab_size - 1}")
    text = tokenizer.decode(map(int, words))
    out.line(text)
    out.result({"text": text})
    return 0
