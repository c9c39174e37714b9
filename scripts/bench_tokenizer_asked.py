"""What is asked of the tokenizer, beside what a run of scripts/bench_tokenizer.py measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def asked(body: Row) -> list[Row]:
    """One row for each thing that was measured: what, at least or at most how much, the figure of the worst text, reached."""
    rows = []
    for what, limit, found in _figures(body):
        least = limit > 0
        rows.append({"what": what, "asked": abs(limit), "least": least, "found": found})
        rows[-1]["reached"] = found >= limit if least else found <= -limit
    return rows


def lines(rows: list[Row]) -> list[str]:
    """A line for each, within 80 columns."""
    return [
        f"{row['what']:<52}{'>=' if row['least'] else '<='}{row['asked']:>5.1f}{row['found']:>8.2f}  "
        f"{'reached' if row['reached'] else 'NOT REACHED'}"
        for row in rows
    ]


def _figures(body: Row) -> Iterator[tuple[str, float, float]]:
    """What, the limit (negative: at most), and the figure."""
    for pattern in dict.fromkeys(row["pattern"] for row in body.get("encode", ())):
        rows = [row for row in body["encode"] if row["pattern"] == pattern]
        for name, limit in (("warm", 8.0), ("warm, a list", 8.0), ("cold", 2.0)):
            yield f"encode, {pattern}, {name}, x tiktoken", limit, _worst(rows, name, "tiktoken encode_ordinary")
    if rows := body.get("decode"):
        yield "decode from a list, x tiktoken", 1.0, _worst(rows, "from a list", "tiktoken decode_bytes")
    if rows := body.get("threads"):
        seconds = {row["name"]: row["seconds"] for row in rows}
        for kind in ("arrays", "lists"):
            yield f"two threads, {kind}, x one", 1.6, seconds[f"{kind}, 1 thread"] / seconds[f"{kind}, 2 threads"]
    if rows := body.get("repetition"):
        longest = max(row["4 MB"] / row["1 MB"] for row in rows)
        yield "one piece repeated, 4 MB x 1 MB (quadratic: 16)", -8.0, longest
    if rows := body.get("first"):
        yield "first call with compiled code cached, s", -0.2, min(row["first call"] for row in rows)
    trained = {row["name"]: row for row in body.get("train", ()) if "error" not in row}
    if {"jaxlm", "tokenizers"} <= trained.keys():
        ours, theirs = trained["jaxlm"], trained["tokenizers"]
        yield "train, CPU time, x as fast as tokenizers", 4.0, theirs["cpu_seconds"] / ours["cpu_seconds"]
        yield "train, peak memory, x that of tokenizers", -1.0, ours["peak_bytes"] / theirs["peak_bytes"]


def _worst(rows: list[Row], name: str, peer: str) -> float:
    """Times as fast as the peer, on the text on which that is least."""
    of = {(row["name"], row["text"]): row["seconds"] for row in rows}
    return min(of[peer, text] / seconds for (found, text), seconds in of.items() if found == name)
