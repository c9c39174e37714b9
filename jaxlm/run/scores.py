"""The figures of an evaluation, computed from the scores of its documents, which lie beside its manifest.

What an evaluation states is a few ratios of sums. They are computed here a second time, without the code that scored: by the
evaluation before it is written, and by the audit afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.contract import Finding, Manifest

FILE = "documents.jsonl"  # one line a document, in order: document, nll, end_nll (nats), tokens, bytes (of the text)
FIGURES = ("bits_per_byte", "loss", "end_of_document_loss", "documents", "bytes", "tokens")
TOLERANCE = 1e-9  # relative; float64 sums in another order differ by less
_REMEDY = "Restore it from a copy, or evaluate again."


def figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`FIGURES` of the lines of all documents: sums over documents first, ratios last.

    Raises ValueError (KeyError, TypeError) for lines that are none of documents in order, or without text.
    """
    held = list(lines)
    if [line["document"] for line in held] != list(range(len(held))):
        raise ValueError("expected documents in order, from 0")
    nll, end = (math.fsum(line[name] for line in held) for name in ("nll", "end_nll"))
    size, tokens = (sum(line[name] for line in held) for name in ("bytes", "tokens"))
    if not size or not tokens:
        raise ValueError("expected documents with text")
    ratios = {"bits_per_byte": nll / (math.log(2) * size), "loss": nll / tokens, "end_of_document_loss": end / len(held)}
    return {**ratios, "documents": len(held), "bytes": size, "tokens": tokens}


def differing(stated: Mapping[str, Any], computed: Mapping[str, float]) -> list[str]:
    """The names of figures that are stated otherwise than they come out."""

    def same(a: Any, b: float) -> bool:
        return isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-300)

    return [name for name in FIGURES if not same(stated.get(name), computed[name])]


def recomputed(root: Path, manifest: Manifest, data: Manifest | None) -> Iterator[Finding]:
    """Whether an evaluation states what the scores of its documents give; and, where data is there and all of a split's
    documents were scored, the bytes and tokens that the data states for the split."""
    where = str(root / FILE)
    try:
        computed = figures(json.loads(line) for line in (root / FILE).read_bytes().splitlines())
    except (OSError, ValueError, KeyError, TypeError):
        yield Finding("evaluation", where, False, "the scores of documents, one a line", "others", _REMEDY)
        return
    names = differing(manifest.facts, computed) or list(FIGURES[:1])
    kept = not differing(manifest.facts, computed)
    stated = ", ".join(f"{name} {manifest.facts.get(name)}" for name in names)
    found = ", ".join(f"{name} {computed[name]}" for name in names)
    yield Finding("evaluation", where, kept, stated, found, _REMEDY)
    split = data.facts.get("splits", {}).get(manifest.facts.get("split")) if data is not None else None
    if split is None or computed["documents"] < split["documents"]:
        return
    whole = {"documents": split["documents"], "bytes": split["bytes"], "tokens": split["tokens"] - 2 * split["documents"]}
    scored = {name: computed[name] for name in whole}
    expected, found = (", ".join(f"{value} {name}" for name, value in counts.items()) for counts in (whole, scored))
    yield Finding("evaluation", where, whole == scored, f"the whole split: {expected}", found, _REMEDY)
