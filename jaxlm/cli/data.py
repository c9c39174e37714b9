"""Build token shards from text; show what is in them.

jaxlm data build --tokenizer tok --out shards --data.source corpus/
jaxlm data show shards
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output
from jaxlm.config.load import load_config
from jaxlm.config.overrides import apply_overrides
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError, plain

SECTIONS, CONFIG = ("data",), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm data`."""
    parser.add_argument("action", choices=("build", "show"))
    parser.add_argument("path", nargs="?", help="build: a config, or nothing; show: the directory of the shards")
    parser.add_argument("--tokenizer", help="build: the directory of the tokenizer")
    parser.add_argument("--out", help="build: the directory of the new shards")


def run(args: argparse.Namespace, out: Output) -> int:
    """Build or show."""
    from jaxlm.data import build_shards, open_shards
    from jaxlm.tokenizer import Tokenizer

    if args.action == "build":
        for name in ("tokenizer", "out"):
            if not getattr(args, name):
                raise InputError(f"--{name}: expected a directory, found nothing")
        config = apply_overrides(load_config(args.path) if args.path else RunConfig(), args.overrides, only=SECTIONS)
        shards = build_shards(config.data, Tokenizer.load(args.tokenizer), args.out)
    else:
        if not args.path or args.overrides:
            raise InputError("jaxlm data show: expected the directory of the shards and nothing else")
        shards = open_shards(args.path)
    facts = shards.manifest.facts
    out.line(f"{shards.path}: {shards.manifest.fingerprint[:12]}")
    for split, found in facts["splits"].items():
        out.line(
            f"{split:<5}{found['documents']:>10,} documents {found['tokens']:>14,} tokens {found['bytes']:>15,} bytes"
            f" {len(found['shards']):>3,} shards"
        )
    counted = facts["curation"]
    out.line(
        f"read {counted['documents']:>10,} documents, {counted['invalid_utf8']:,} repaired, {counted['empty']:,} empty"
        + (f", {counted['mojibake']:,} mojibake" if counted.get("mojibake") else "")
        + (", stopped at --data.max-bytes" if counted["truncated"] else "")
    )
    out.result({"data": str(shards.path), "fingerprint": shards.manifest.fingerprint, "facts": plain(facts)})
    return 0
