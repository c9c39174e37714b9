"""Show the tokens of a text with their borders, ids, bytes and ranks; then
what the vocabulary holds, what of it is odd, and whether all comes back.

  jaxlm tokenizer inspect tok "some text"
  jaxlm tokenizer inspect tok --file book.txt --html book.html
  jaxlm tokenizer inspect tok "some text" --data.source corpus/
  jaxlm tokenizer inspect tok --data.path shards

With --data.source, or the shards of --data.path, it also lists the tokens that
never occur in them. Words of the text come before --data.source, which takes
all words that follow it. Exits with 1 if anything does not come back from its
ids as it was.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from jaxlm.cli.arguments import utf8
from jaxlm.cli.output import Output, require_new, write_new
from jaxlm.cli.tokenizer_reading import (
    add_format_arguments,
    add_text_arguments,
    data_config,
    documents,
    given_text,
    id_counts,
    read,
)
from jaxlm.contract import InputError

if TYPE_CHECKING:
    from jaxlm.tokenizer.inspection import Inspection, Token

SECTIONS, CONFIG = ("data",), ""
TEXT = "Hello, world! It's a naïve café:  1234567 → 你好,世界 🙂👩‍🚀\n    return f'{x!r}'\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer inspect`."""
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a directory of jaxlm, or a file of another project")
    add_text_arguments(parser)
    parser.add_argument("--allow-special", action="store_true", help="special tokens in the text stand for their ids")
    parser.add_argument("--html", metavar="OUT", help="write a page that shows all of it to this new file")
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="tokens of the text that are shown (default 300)")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="rows of each list (default 20)")
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Inspect, show, write the page."""
    from jaxlm.tokenizer.inspection import inspect

    if args.html:
        require_new(args.html, option="--html")
    data, text = data_config(args), given_text(args)
    tokenizer = read(args.tokenizer, args)
    shards = id_counts(data, tokenizer) if data and data.path else None
    if args.rows < 0:
        raise InputError(f"--rows: expected >= 0, found {args.rows}")
    found = inspect(
        tokenizer,
        TEXT if text is None else text,
        documents=documents(data) if data and not data.path else None,
        id_counts=shards and shards[0],
        allow_special=args.allow_special,
    )
    where = None if data is None else data.path or " ".join(data.source)
    size = shards[1:] if shards else (found.documents, found.data_bytes)
    _show(found, args, out, where, size)
    if args.html:
        from jaxlm.report.tokenizer import tokenizer_page

        page = tokenizer_page(found, name=utf8(args.tokenizer), data=where and utf8(where))
        write_new(args.html, page.encode(), option="--html")
        out.line(f"\n{args.html}: the page")
    body = {"tokenizer": args.tokenizer, "html": args.html, **report(found)}
    if body["never"] is not None:
        body["never"] |= {"data": where, "documents": size[0], "bytes": size[1]}
    out.result(body)
    return 1 if found.failures else 0


# ---- for a script ------------------------------------------------------------------------------------------------


def described(token: Token) -> dict[str, Any]:
    """A token as JSON: text is None where its bytes are no UTF-8."""
    try:
        text = token.raw.decode()
    except UnicodeDecodeError:
        text = None
    return {"id": token.id, "bytes": token.raw.hex(), "text": text, "rank": token.rank, "special": token.special}


def report(found: Inspection) -> dict[str, Any]:
    """All that was found, as JSON."""
    size, ids = len(found.text.encode()), found.ids.tolist()
    never = found.never
    return {
        "fingerprint": found.tokenizer.fingerprint,
        "vocab_size": found.tokenizer.vocab_size,
        "pattern": found.tokenizer.pattern,
        "special_tokens": found.tokenizer.special_ids,
        "text": {
            "text": found.text,
            "bytes": size,
            "tokens": len(ids),
            "bytes_per_token": size / len(ids) if ids else None,
            "token_ids": ids,
            "distinct": [described(found.tokens[i]) for i in dict.fromkeys(ids)],
        },
        "samples": [
            {
                "name": one.sample.name,
                "kind": one.sample.kind,
                "script": one.sample.script,
                "bytes": one.bytes,
                "tokens": one.tokens,
                "bytes_per_token": one.bytes_per_token,
                "tokens_against_english": one.against_english or None,
            }
            for one in found.measured
        ],
        "longest": [described(found.tokens[i]) for i in found.longest[:100]],
        "not_utf8_alone": {"count": len(found.not_utf8), "token_ids": found.not_utf8},
        "unreachable": {"count": len(found.unreachable), "token_ids": found.unreachable},
        "never": None if never is None else {"count": len(never), "token_ids": never, "byte_tokens": found.never_bytes},
        "round_trip": {
            "checked": found.checked,
            "failures": [
                {"where": f.where, "offset": f.at, "expected": f.expected.hex(), "found": f.found.hex()} for f in found.failures
            ],
        },
    }


# ---- for a person ------------------------------------------------------------------------------------------------


def _show(found: Inspection, args: argparse.Namespace, out: Output, where: str | None, size: tuple[int, int]) -> None:
    from jaxlm.cli.tokenizer_drawing import Screen, short, spelt, table

    screen, tokenizer, rows = Screen(out), found.tokenizer, args.rows
    specials = " ".join(f"{text} {number}" for text, number in tokenizer.special_ids.items()) or "none"
    screen.show(f"{args.tokenizer}: {tokenizer.vocab_size:,} ids, pattern {tokenizer.pattern}, {tokenizer.fingerprint[:12]}")
    screen.show(f"special tokens: {specials}")

    def listed(ids: list[int]) -> None:
        screen.items([f"{short(found.tokens[i].raw)} ({i})" for i in ids[:rows]], more=len(ids) - rows)

    ids, raw_size = found.ids.tolist(), len(found.text.encode())
    ratio = f", {raw_size / len(ids):.2f} bytes per token" if ids else ""
    screen.title(f"the text: {raw_size:,} bytes, {len(ids):,} tokens{ratio}")
    most = max(args.tokens, 0)
    screen.tokens(found.tokens[i].raw for i in ids[:most])
    if len(ids) > most:
        screen.show(f"… the first {most:,} of {len(ids):,} tokens; --tokens shows more")
    times = Counter(ids)
    screen.show()
    lines = [
        (str(t.id), short(t.raw), spelt(t.raw), _rank(t), " + ".join(short(p, 16) for p in t.parts or ()), str(times[t.id]))
        for t in (found.tokens[i] for i in list(times)[:rows])
    ]
    screen.show(
        table(("id", "token", "bytes", "rank", "joins", "times"), lines, width=screen.width, right=("id", "rank", "times"))
    )
    if len(times) > rows:
        screen.show(f"… and {len(times) - rows:,} more; --rows shows more")

    screen.title("bytes per token, of texts of many languages (which all say the same) and kinds")
    best = max(one.bytes_per_token for one in found.measured)
    lines = [
        (
            one.sample.name,
            one.sample.script or one.sample.kind,
            f"{one.tokens}",
            f"{one.against_english:.1f} ×" if one.against_english else "",
            f"{one.bytes_per_token:.2f}",
            "█" * max(1, round(12 * one.bytes_per_token / best)),
        )
        for one in found.measured
    ]
    screen.show(
        table(
            ("sample", "script, kind", "tokens", "of English", "bytes/token", ""),
            lines,
            width=screen.width,
            right=("tokens", "bytes/token"),
        )
    )

    screen.title("the longest tokens")
    listed(found.longest[:rows])
    merged = [i for i in found.not_utf8 if found.tokens[i].parts]
    bare = len(found.not_utf8) - len(merged)
    screen.title(
        f"not UTF-8 alone: {len(found.not_utf8):,} of {len(found.tokens):,} tokens, {bare} bytes and {len(merged):,} merges"
    )
    listed(merged)
    screen.title(f"unreachable, since their own bytes merge to something else: {len(found.unreachable):,}")
    listed(found.unreachable)
    if found.never is None:
        screen.title("never in the data: no data was given (--data.source, or --data.path for shards)")
    else:
        screen.title(
            f"never in the data: {len(found.never):,} of {len(tokenizer.merges):,} merges, {found.never_bytes} of 256 bytes"
        )
        screen.show(f"{where}: {size[0]:,} documents, {size[1]:,} bytes")
        listed(found.never)
    checked = f"{found.checked['ids']:,} ids and {found.checked['texts']:,} texts"
    screen.title(f"round trip of {checked}: " + (f"{len(found.failures)} FAILED" if found.failures else "all came back"))
    for failure in found.failures[:rows]:
        screen.show(f"{failure.where}: at byte {failure.at} expected {spelt(failure.expected)}, found {spelt(failure.found)}")


def _rank(token: Token) -> str:
    return "special" if token.special else "byte" if token.rank is None else str(token.rank)
