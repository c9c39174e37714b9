"""Where two tokenizers split the same text differently, by how much, and what in them differs.

Both are aligned by the bytes they stand for: between borders that both have lie the smallest stretches that they can agree or
differ on. Special tokens in texts are text like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from jaxlm.tokenizer.pretoken import PATTERNS
from jaxlm.tokenizer.tokenizer import Tokenizer

CONTEXT = 24  # bytes on either side of an example
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """Where a stretch was first met. before, after: up to 24 bytes of the text around it; document, offset: counted from 0."""

    document: int
    offset: int
    before: bytes
    after: bytes


@dataclass
class TextDifferences:
    """What encoding the same documents with both showed. Counts of documents, bytes of UTF-8, and tokens of A and B.

    split_*: documents and bytes whose tokens have other borders. documents_with_other_ids: those whose ids are not equal, for
    other borders or other numbers. stretches: (ids of A, ids of B) -> how often; examples: the first of each.
    """

    documents: int = 0
    bytes: int = 0
    tokens_a: int = 0
    tokens_b: int = 0
    split_documents: int = 0
    split_bytes: int = 0
    documents_with_other_ids: int = 0
    stretches: Counter[tuple[Ids, Ids]] = field(default_factory=Counter)
    examples: dict[tuple[Ids, Ids], Example] = field(default_factory=dict)


def borders(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Offsets in bytes at which tokens begin, and the end, int64 [len(ids) + 1]. ids: of a text without special tokens."""
    return np.concatenate([[0], np.cumsum(tokenizer.byte_lengths[ids], dtype=np.int64)])


def differing(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """The stretches that two cuts of the same bytes differ in: first and end token in A, first and end token in B.

    a, b: borders, rising, both from 0 to the length of the text. A stretch lies between neighbouring common borders; one that
    is a single token in both is no difference.
    """
    _, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    wide = np.flatnonzero((np.diff(in_a) > 1) | (np.diff(in_b) > 1))
    yield from zip(in_a[wide].tolist(), in_a[wide + 1].tolist(), in_b[wide].tolist(), in_b[wide + 1].tolist(), strict=True)


def compare_texts(a: Tokenizer, b: Tokenizer, texts: Iterable[str]) -> TextDifferences:
    """Encode every text with both and compare. Memory grows with the number of distinct stretches, not with the texts.

    Raises ValueError for a lone surrogate.
    """
    found = TextDifferences()
    for text in texts:
        ids_a, ids_b = a.encode_to_numpy(text), b.encode_to_numpy(text)
        begins_a, begins_b = borders(a, ids_a), borders(b, ids_b)
        raw, size = text.encode(), found.split_bytes
        for first_a, end_a, first_b, end_b in differing(begins_a, begins_b):
            begin, end = int(begins_a[first_a]), int(begins_a[end_a])
            pair = tuple(ids_a[first_a:end_a].tolist()), tuple(ids_b[first_b:end_b].tolist())
            if not found.stretches[pair]:
                around = raw[max(begin - CONTEXT, 0) : begin], raw[end : end + CONTEXT]
                found.examples[pair] = Example(found.documents, begin, *around)
            found.stretches[pair] += 1
            found.split_bytes += end - begin
        found.split_documents += found.split_bytes > size
        found.documents_with_other_ids += not np.array_equal(ids_a, ids_b)
        found.documents += 1
        found.bytes += len(raw)
        found.tokens_a += len(ids_a)
        found.tokens_b += len(ids_b)
    return found


@dataclass(frozen=True)
class DefinitionDifferences:
    """What of the tokenizers themselves differs: all that makes ids.

    pattern: whether it is equal. only_a, only_b: tokens that the other has not, in order of id. other_id: bytes -> id in A and
    in B, where these differ. special: text of a special token -> id in A and B, None where there is none; of those that differ.
    merges_differ_at: first rank whose merges differ, None where none does. merge_a, merge_b: those there, None past the end.
    shared_merges: how many merges both have, at whatever rank. document_token: whether the same opens and closes documents.
    """

    pattern: bool
    only_a: list[bytes]
    only_b: list[bytes]
    other_id: dict[bytes, tuple[int, int]]
    special: dict[str, tuple[int | None, int | None]]
    merges_differ_at: int | None
    merge_a: tuple[bytes, bytes] | None
    merge_b: tuple[bytes, bytes] | None
    shared_merges: int
    document_token: bool

    @property
    def identical(self) -> bool:
        """Whether nothing differs: then every text has equal ids."""
        same = self.pattern and self.document_token and self.merges_differ_at is None
        return same and not (self.only_a or self.only_b or self.other_id or self.special)


def compare_definitions(a: Tokenizer, b: Tokenizer) -> DefinitionDifferences:
    """Compare pattern, merges, ids and special tokens."""
    ids_a, ids_b = _ids(a), _ids(b)
    rank = next((i for i, (x, y) in enumerate(zip(a.merges, b.merges, strict=False)) if x != y), None)
    shorter = min(len(a.merges), len(b.merges))
    if rank is None and len(a.merges) != len(b.merges):
        rank = shorter
    special = {text: (a.special_ids.get(text), b.special_ids.get(text)) for text in {**a.special_ids, **b.special_ids}}
    return DefinitionDifferences(
        pattern=PATTERNS[a.pattern] == PATTERNS[b.pattern],
        only_a=[raw for raw in ids_a if raw not in ids_b],
        only_b=[raw for raw in ids_b if raw not in ids_a],
        other_id={raw: (i, ids_b[raw]) for raw, i in ids_a.items() if raw in ids_b and ids_b[raw] != i},
        special={text: pair for text, pair in special.items() if pair[0] != pair[1]},
        merges_differ_at=rank,
        merge_a=a.merges[rank] if rank is not None and rank < len(a.merges) else None,
        merge_b=b.merges[rank] if rank is not None and rank < len(b.merges) else None,
        shared_merges=len(set(a.merges) & set(b.merges)),
        document_token=(a.special_tokens[:1] == b.special_tokens[:1]),
    )


def _ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Bytes -> id of all but special tokens, in order of id."""
    vocabulary = tokenizer.vocabulary
    return dict(sorted(zip(vocabulary.tokens, vocabulary.ids.tolist(), strict=True), key=lambda item: item[1]))
