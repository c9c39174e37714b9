"""Say where two tokenizers split the same text differently, and by how much:
what one needs where an update moves the scores of an evaluation.

  jaxlm tokenizer diff tok other
  jaxlm tokenizer diff tok other "some text"
  jaxlm tokenizer diff tok other --data.source corpus/

Without a text, the built-in samples of many languages and kinds are compared.
Words of the text come before --data.source, which takes all words that follow
it. What --pattern and the other options say of a file holds for both.

Exits with 0 whether they differ or not, for 1 means a broken contract here;
a script reads `identical` of --json.
"""

from __future__ import annotations

import argparse
from itertools import chain
from typing import TYPE_CHECKING, Any

from jaxlm.cli.output import Output
from jaxlm.cli.tokenizer_reading import add_format_arguments, add_text_arguments, data_config, documents, given_text, read

if TYPE_CHECKING:
    from jaxlm.tokenizer import Tokenizer
    from jaxlm.tokenizer.comparison import DefinitionDifferences, TextDifferences

SECTIONS, CONFIG = ("data",), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm tokenizer diff`."""
    parser.add_argument("tokenizer", metavar="A", help="a directory of jaxlm, or a file of another project")
    parser.add_argument("other", metavar="B", help="the same")
    add_text_arguments(parser)
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="rows of each list (default 20)")
    add_format_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Compare and show."""
    from jaxlm.tokenizer.artifact import PROBE
    from jaxlm.tokenizer.comparison import compare_definitions, compare_texts
    from jaxlm.tokenizer.samples import SAMPLES

    data, text = data_config(args), given_text(args)
    a, b = (read(path, args, as_far_as_needed=True) for path in (args.tokenizer, args.other))
    what = [*(["the text"] if text is not None else []), *(data.source if data else ())]
    texts = chain([text] if text is not None else [], documents(data) if data else [])
    if not what:
        what, texts = ["the samples and the probe text"], chain([sample.text for sample in SAMPLES], [PROBE])
    texts_found, definitions = compare_texts(a, b, texts), compare_definitions(a, b)
    _show(args, out, ", ".join(what), a, b, definitions, texts_found)
    out.result({"a": args.tokenizer, "b": args.other, **report(a, b, definitions, texts_found, rows=max(args.rows, 0))})
    return 0


def report(a: Tokenizer, b: Tokenizer, d: DefinitionDifferences, t: TextDifferences, *, rows: int) -> dict[str, Any]:
    """All that was found, as JSON; of stretches, the `rows` most frequent."""

    def merge(pair: tuple[bytes, bytes] | None) -> list[str] | None:
        return pair and [part.hex() for part in pair]

    return {
        "identical": d.identical,
        "fingerprints": [a.fingerprint, b.fingerprint],
        "patterns": [a.pattern, b.pattern],
        "vocab_sizes": [a.vocab_size, b.vocab_size],
        "merges": {
            "a": len(a.merges),
            "b": len(b.merges),
            "shared": d.shared_merges,
            "first_difference": d.merges_differ_at,
            "there": [merge(d.merge_a), merge(d.merge_b)],
        },
        "vocabulary": {
            "only_a": [raw.hex() for raw in d.only_a],
            "only_b": [raw.hex() for raw in d.only_b],
            "other_id": {raw.hex(): pair for raw, pair in d.other_id.items()},
        },
        "special_tokens": d.special,
        "document_token_equal": d.document_token,
        "texts": {
            "documents": t.documents,
            "bytes": t.bytes,
            "tokens": [t.tokens_a, t.tokens_b],
            "bytes_per_token": [t.bytes / n if n else None for n in (t.tokens_a, t.tokens_b)],
            "documents_split_differently": t.split_documents,
            "bytes_split_differently": t.split_bytes,
            "documents_with_other_ids": t.documents_with_other_ids,
            "distinct_stretches": len(t.stretches),
            "stretches": [
                {
                    "count": count,
                    "a": [a.vocab[i].hex() for i in ids_a],
                    "b": [b.vocab[i].hex() for i in ids_b],
                    "ids_a": ids_a,
                    "ids_b": ids_b,
                    "document": t.examples[ids_a, ids_b].document,
                    "offset": t.examples[ids_a, ids_b].offset,
                }
                for (ids_a, ids_b), count in t.stretches.most_common(rows)
            ],
        },
    }


def _show(
    args: argparse.Namespace, out: Output, what: str, a: Tokenizer, b: Tokenizer, d: DefinitionDifferences, t: TextDifferences
) -> None:
    from jaxlm.cli.tokenizer_drawing import Screen, drawn, short, table
    from jaxlm.tokenizer.visible import visible

    screen, rows = Screen(out), max(args.rows, 0)
    for letter, path, tokenizer in (("A", args.tokenizer, a), ("B", args.other, b)):
        screen.show(
            f"{letter}  {path}: {tokenizer.vocab_size:,} ids, pattern {tokenizer.pattern}, {tokenizer.fingerprint[:12]}"
        )
    if d.identical:
        screen.show("identical: pattern, merges, ids and special tokens are equal, and so are the ids of every text")
        return

    def share(part: int, whole: int) -> str:
        return f"{100 * part / whole:.3g} %" if whole else "none"

    def rate(tokens: int) -> str:
        return f"{t.bytes / tokens:.3f}" if tokens else "-"

    screen.title(f"on {what} ({t.documents:,} documents, {t.bytes:,} bytes)")
    split = share(t.split_bytes, t.bytes), share(t.split_documents, t.documents)
    screen.show(f"split differently   {split[0]} of the bytes ({t.split_bytes:,})")
    screen.show(f"                    {split[1]} of the documents ({t.split_documents:,})")
    other = share(t.documents_with_other_ids, t.documents)
    screen.show(f"ids not equal       {other} of the documents ({t.documents_with_other_ids:,})")
    more = f", B {100 * (t.tokens_b / t.tokens_a - 1):+.2f} %" if t.tokens_a else ""
    screen.show(f"tokens              A {t.tokens_a:,}, B {t.tokens_b:,}{more}")
    screen.show(f"bytes per token     A {rate(t.tokens_a)}, B {rate(t.tokens_b)}")

    if t.stretches:
        screen.title(f"the most frequent of {len(t.stretches):,} stretches that differ, and where one was first met")
        lines = []
        for pair, count in t.stretches.most_common(rows):
            example = t.examples[pair]
            cuts = [
                drawn([owner.vocab[i] for i in ids], width=999, colour=False) for owner, ids in zip((a, b), pair, strict=True)
            ]
            stretch = b"".join(a.vocab[i] for i in pair[0])
            around = f"{visible(example.before)[-12:]}[{short(stretch)}]{visible(example.after)[:12]}"
            lines.append((f"{count:,}", cuts[0].plain, cuts[1].plain, around))
        screen.show(
            table(("times", "A", "B", "example"), lines, width=screen.width, right=("times",), fold=("A", "B", "example"))
        )

    screen.title("what differs in them")
    screen.show("pattern: equal" if d.pattern else f"pattern: A {a.pattern}, B {b.pattern}")
    if d.merges_differ_at is None:
        screen.show(f"merges: equal, {len(a.merges):,}")
    else:
        joined = [" + ".join(map(visible, pair)) if pair else "none" for pair in (d.merge_a, d.merge_b)]
        screen.show(f"merges: first differ at rank {d.merges_differ_at:,}, A {joined[0]}, B {joined[1]}")
        screen.show(f"        A has {len(a.merges):,}, B {len(b.merges):,}; {d.shared_merges:,} are in both")
    for letter, only in (("A", d.only_a), ("B", d.only_b)):
        screen.show(f"tokens only in {letter}: {len(only):,}")
        screen.items([short(raw) for raw in only[:rows]], more=len(only) - rows if only else 0)
    screen.show(f"tokens in both with another id: {len(d.other_id):,}")
    pairs = [f"{short(raw)} A {x} B {y}" for raw, (x, y) in list(d.other_id.items())[:rows]]
    screen.items(pairs, more=len(d.other_id) - rows)
    screen.show("special tokens: equal" if not d.special else f"special tokens that differ: {len(d.special):,}")
    numbers = [f"{text} A {'-' if x is None else x} B {'-' if y is None else y}" for text, (x, y) in d.special.items()]
    screen.items(numbers[:rows], more=len(numbers) - rows)
    if not d.document_token:
        first = [tokenizer.special_tokens[0] if tokenizer.special_tokens else "none" for tokenizer in (a, b)]
        screen.show(f"documents open and close with: A {first[0]}, B {first[1]}")
