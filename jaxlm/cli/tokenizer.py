"""Train a tokenizer, use it, and look at what it does.

  train    learn the merges from text
           jaxlm tokenizer train --out tok --data.source corpus/
  encode   text to ids
           jaxlm tokenizer encode tok "some text"
  decode   ids to text
           jaxlm tokenizer decode tok 284 257 13
  inspect  the tokens of a text, and what is odd about the vocabulary
           jaxlm tokenizer inspect tok "some text" --html tok.html
  diff     where two tokenizers split the same text differently
           jaxlm tokenizer diff tok other --data.source corpus/
  convert  between the formats of tokenizers
           jaxlm tokenizer convert tok tokenizer.json
  bench    how fast it is on this machine
           jaxlm tokenizer bench tok --file book.txt

A tokenizer is a directory that `train` made; a tokenizer.json; a .tiktoken
file; or a directory with vocab.json and merges.txt.

`jaxlm tokenizer ACTION --help` says more. Every action takes

  --json      print one JSON object and nothing else

and those that read --data.source

  --strict    refuse text that is no UTF-8, instead of repairing it
"""

from __future__ import annotations

import argparse
from importlib import import_module

from jaxlm.cli.output import Output

ACTIONS = {
    "train": "jaxlm.cli.tokenizer_train",
    "encode": "jaxlm.cli.tokenizer_encode",
    "decode": "jaxlm.cli.tokenizer_decode",
    "inspect": "jaxlm.cli.tokenizer_inspect",
    "diff": "jaxlm.cli.tokenizer_diff",
    "convert": "jaxlm.cli.tokenizer_convert",
    "bench": "jaxlm.cli.tokenizer_bench",
}


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the action that was named."""
    return int(import_module(ACTIONS[args.action]).run(args, out))
