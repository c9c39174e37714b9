"""Scoring whole documents: every token of the text once, with as much context as the window gives.

A document longer than the context is read in windows that overlap; each scores `stride` new tokens. Windows of short documents
share a row, apart from each other. The loss of a document is a float64 sum over its tokens.

Axes: B row, T position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.data import Batch, TokenStream


class Window(NamedTuple):
    """A stretch of a document. ids: its inputs and one label more; scored: how many of the last labels count."""

    document: int
    ids: np.ndarray
    scored: int


class ScoredBatch(NamedTuple):
    """A batch whose loss mask marks the labels that count. documents: int32 [B, T], the document of each position, or -1."""

    batch: Batch
    documents: np.ndarray


@dataclass(frozen=True)
class DocumentScores:
    """Sums by document, all [documents]. nll: nats over the tokens of the text; end_nll: of EOS; tokens, bytes: of the text."""

    nll: np.ndarray
    end_nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


def windows(index: int, ids: np.ndarray, *, context_length: int, stride: int) -> Iterator[Window]:
    """Cut a document (with BOS and EOS) so that every label counts once, each with at least context_length - stride tokens
    before it, where the document has them. Raises ValueError for a stride outside 1..context_length."""
    if not 1 <= stride <= context_length:
        raise ValueError(f"expected a stride in 1..{context_length}, the context, found {stride}")
    labels, done = len(ids) - 1, 0
    while done < labels:
        # The first window scores all it holds; a later one begins so far back that it ends `stride` labels on.
        end = min(labels, max(done + stride, context_length))
        begin = max(0, end - context_length)
        yield Window(index, ids[begin : end + 1], end - done)
        done = end


def rows_of_windows(cut: Iterator[Window], *, context_length: int) -> Iterator[list[Window]]:
    """Windows in their order, as many to a row as fit.

    The last label of a window stands in the row as an input as well, as the batch contract wants it; it may be missing
    where the row ends.
    """
    row: list[Window] = []
    used = 0
    for window in cut:
        if row and used + len(window.ids) - 1 > context_length:
            yield row
            row, used = [], 0
        row.append(window)
        used += len(window.ids)
    if row:
        yield row


def batches_of_rows(rows: Iterator[list[Window]], *, batch_size: int, context_length: int) -> Iterator[ScoredBatch]:
    """Rows as batches of one shape, the last one filled up with padding."""
    pending: list[list[Window]] = []
    for row in rows:
        pending.append(row)
        if len(pending) == batch_size:
            yield _batch(pending, batch_size, context_length)
            pending = []
    if pending:
        yield _batch(pending, batch_size, context_length)


def _batch(rows: list[list[Window]], batch_size: int, context_length: int) -> ScoredBatch:
    shape = batch_size, context_length
    tokens, labels, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    counted, documents = np.zeros(shape, bool), np.full(shape, -1, np.int32)
    for b, row in enumerate(rows):
        at = 0
        for number, window in enumerate(row, 1):
            length, end = min(len(window.ids), context_length - at), at + len(window.ids) - 1
            here = slice(at, at + length)
            tokens[b, here], labels[b, at:end] = window.ids[:length], window.ids[1:]
            segments[b, here], positions[b, here] = number, np.arange(length)
            counted[b, end - window.scored : end] = True
            documents[b, here] = window.document
            at += length
    return ScoredBatch(Batch(tokens, labels, counted, segments, positions), documents)


def scored_batches(
    stream: TokenStream, *, batch_size: int, context_length: int, stride: int, limit: int = 0
) -> Iterator[ScoredBatch]:
    """All documents of a split (or the first `limit`), as batches in which every label of every document counts once."""
    count = min(stream.documents, limit) if limit else stream.documents
    cut = (
        window
        for index in range(count)
        for window in windows(index, stream.document(index), context_length=context_length, stride=stride)
    )
    return batches_of_rows(
        rows_of_windows(cut, context_length=context_length), batch_size=batch_size, context_length=context_length
    )


class Tally:
    """Sums by document, while scored batches come in. byte_lengths: int [V], 0 for special tokens. artifact: what made the
    scores, for messages."""

    def __init__(self, documents: int, byte_lengths: np.ndarray, *, artifact: object = "scores"):
        self._lengths, self._artifact = byte_lengths, artifact
        self._nll, self._end = np.zeros(documents), np.zeros(documents)
        self._tokens, self._bytes = np.zeros(documents, np.int64), np.zeros(documents, np.int64)

    def add(self, scored: ScoredBatch, nll_BT: np.ndarray) -> None:
        """nll_BT: negative log likelihood of each label, in nats. Raises ContractError where one that counts is not finite."""
        counted = scored.batch.loss_mask
        document, label = scored.documents[counted], scored.batch.labels[counted]
        nll, size = nll_BT[counted].astype(np.float64), self._lengths[label]
        if (bad := ~np.isfinite(nll)).any():
            raise ContractError(
                "evaluation",
                artifact=self._artifact,
                expected="a finite loss for every label",
                found=f"{nll[bad][0]} for id {label[bad][0]} in document {document[bad][0]} ({int(bad.sum())} places)",
                remedy="Evaluate an earlier checkpoint, or look for the first step whose numbers are not finite.",
            )
        text = size > 0
        np.add.at(self._nll, document[text], nll[text])
        np.add.at(self._end, document[~text], nll[~text])
        np.add.at(self._tokens, document[text], 1)
        np.add.at(self._bytes, document, size)

    def scores(self) -> DocumentScores:
        """The sums so far."""
        return DocumentScores(self._nll, self._end, self._tokens, self._bytes)
