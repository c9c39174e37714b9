"""Measure how fast a tokenizer is on this machine, in MB of UTF-8 a second.

  jaxlm tokenizer bench tok
  jaxlm tokenizer bench tok --file book.txt
  jaxlm tokenizer bench tok --data.source corpus/ --data.max-bytes 50000000

Without a text: 8 MB of the running Python's own. Cold is the first pass of a
new tokenizer, which has met no word before; warm, decode and threads are the
best of several passes. A loaded machine gives lower figures.

--engine auto (default) measures numba's code, and NumPy where that cannot be
had; it says which.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxlm.cli.output import STDIO, Output
from jaxlm.cli.tokenizer_reading import add_format_arguments, data_config, documents, given_text, read
from jaxlm.config.schema import DataConfig
from jaxlm.contract import InputError

if TYPE_CHECKING:
    from jaxlm.tokenizer.choosing import Choice

SECTIONS, CONFIG = ("data",), ""
PIECE = 1 << 18  # characters of text that a thread is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer bench`."""
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a directory of jaxlm, or a file of another project")
    parser.add_argument("--file", metavar="PATH", help=f"a text in UTF-8; {STDIO} is standard input")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="passes of which the best counts (default 5)")
    engines = ("auto", "compiled", "portable")
    parser.add_argument("--engine", choices=engines, default="auto", help="what encodes: what there is, numba's code, NumPy")
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure and print."""
    import numpy as np

    from jaxlm.tokenizer import Tokenizer
    from jaxlm.tokenizer.pretoken import pieces

    args.text = []
    if args.passes < 1:
        raise InputError(f"--passes: expected >= 1, found {args.passes}")
    data, text = data_config(args), given_text(args)
    if data is not None and text is not None:
        raise InputError("--file: expected --file or --data.source, found both")
    given = read(args.tokenizer, args)
    whole = [text] if text is not None else list(documents(data or DataConfig(max_bytes=8_000_000)))
    texts = [piece for one in whole for piece in pieces((one,), size=PIECE)]  # with the same ids, for any number of threads
    size = sum(len(piece.encode()) for piece in texts)
    if not size:
        raise InputError(f"{args.file or '--data.source'}: expected text, found none")

    engine, why = _chosen(args.engine)

    def fresh() -> Tokenizer:
        return Tokenizer(given.merges, given.special_ids, given.pattern, ids=given.vocabulary.ids.tolist(), engine=engine)

    def megabytes(work: Callable[[], object], passes: int = args.passes) -> float:
        times = []
        for _ in range(passes):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return size / 1e6 / min(times)

    cold, cold_2, warm = fresh(), fresh(), fresh()
    speeds = {
        "encode, cold": megabytes(lambda: cold.encode_batch_to_numpy(texts, threads=1), 1),
        "encode, cold, 2 threads": megabytes(lambda: cold_2.encode_batch_to_numpy(texts, threads=2), 1),
    }
    ids = np.concatenate(warm.encode_batch_to_numpy(texts, threads=1)).tolist()
    speeds |= {
        "encode, warm": megabytes(lambda: warm.encode_batch_to_numpy(texts, threads=1)),
        "encode, warm, 2 threads": megabytes(lambda: warm.encode_batch_to_numpy(texts, threads=2)),
        "encode, warm, one text to a list": megabytes(lambda: [warm.encode_ordinary(one) for one in whole]),
        "decode": megabytes(lambda: warm.decode_bytes(ids)),
    }
    out.line(
        f"{args.tokenizer}: {size:,} bytes, {len(ids):,} tokens, {size / len(ids):.2f} bytes per token, {os.cpu_count()} CPUs"
    )
    out.line(f"engine: {engine}{f', since {why}' if why else ''}")
    for name, speed in speeds.items():
        out.line(f"{name:<34}{speed:>9.1f} MB/s")
    named = {name.replace(",", "").replace(" ", "_"): speed for name, speed in speeds.items()}
    out.result(
        {
            "tokenizer": args.tokenizer,
            "bytes": size,
            "tokens": len(ids),
            "cpus": os.cpu_count(),
            "engine": engine,
            "mb_per_second": named,
        }
    )
    return 0


def _chosen(wanted: Choice) -> tuple[Choice, str]:
    """What to measure, and why NumPy where nobody asked for it. Loads or compiles the code, which is no part of any figure."""
    from jaxlm.tokenizer.choosing import ENCODING

    if wanted == "portable":
        return "portable", ""
    try:
        ENCODING.require()
    except ImportError as error:
        if wanted == "compiled":
            raise InputError(f"--engine: {error}") from None
        return "portable", f"compiled code cannot be had: {error.__cause__}"
    return "compiled", ""
