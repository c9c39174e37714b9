"""What an evaluation checks of itself before it is written: that its figures are those of its documents, and nothing else.

A score can be wrong and look like one: a mean of means, padding that counts, a document that begins otherwise than in training,
a neighbour in the row that is seen. Here the same documents are counted and scored in another way. Costs: every document is
decoded once more, six at most are scored again, in batches of one row, and of every batch the devices count a checksum.

Axes: B row, T position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxlm.contract import ContractError
from jaxlm.data import Batch, TokenStream, content_sum, row_sums
from jaxlm.evaluate.documents import DocumentScores, ScoredBatch
from jaxlm.run.scores import differing, figures
from jaxlm.tokenizer import Tokenizer

PLACES, WINDOWS = 3, 16  # in a set, of pairs of documents that are scored alone; of at most so many windows each
TOLERANCE = {"float32": 5e-4, "bfloat16": 5e-2, "float16": 1e-2}  # of the mean loss, what rounding explains


def _broken(artifact: object, expected: str, found: str) -> ContractError:
    remedy = "The scoring counts something else than it should; nothing was written."
    return ContractError("evaluation", artifact=artifact, expected=expected, found=found, remedy=remedy)


def require_figures(result: Mapping[str, Any], lines: list[dict[str, Any]], *, artifact: object) -> None:
    """Raise ContractError where the result is not what the lines of its documents give."""
    computed = figures(lines)
    if names := differing(result, computed):
        expected = ", ".join(f"{name} {computed[name]}" for name in names)
        raise _broken(artifact, f"{expected}, as the sums over documents give", ", ".join(f"{result.get(n)}" for n in names))


_content = jax.jit(content_sum)


def require_placed(made: Batch, placed: Batch, *, artifact: object) -> None:
    """Raise ContractError where the batch that lies on the devices, of which the losses are, is not the one that was made.

    placed: the arrays that the scoring takes. In a program of its own, of some integers.
    """
    expected, found = int(row_sums(made).sum(dtype=np.uint32)), int(_content(placed))
    if expected != found:
        raise _broken(artifact, f"the batch that was made, content {expected:08x}", f"{found:08x} on the devices")


def require_counts(scores: DocumentScores, tokenizer: Tokenizer, stream: TokenStream, *, artifact: object) -> None:
    """Raise ContractError where a document's tokens are not those between its borders in the shards' index, or its bytes not
    those of its text, or where it does not begin and end as the tokenizer's rule says that documents of training do."""
    facts = tokenizer.manifest.facts
    for index, (tokens, size) in enumerate(zip(scores.tokens.tolist(), scores.bytes.tolist(), strict=True)):
        ids = stream.document(index)
        if (ids[0], ids[-1]) != (facts["bos_id"], facts["eos_id"]):
            rule = f"{facts['document_rule']}: {facts['bos_id']} .. {facts['eos_id']}"
            raise _broken(artifact, f"document {index} as in training ({rule})", f"{ids[0]} .. {ids[-1]}")
        length = int(stream.starts[index + 1] - stream.starts[index]) - 2
        text = len(tokenizer.decode_bytes(ids[1:-1]))
        if (tokens, size) != (length, text):
            expected = f"{length} tokens and {text} bytes of document {index}"
            raise _broken(artifact, expected, f"{tokens} and {size} that were scored")


class Coverage:
    """Whether of every document each label is scored once, its end among them, and it is read from its BOS on, at position 0,
    as in training. starts: int64 [documents + 1], its borders in the shards' index."""

    def __init__(self, starts: np.ndarray, bos_id: int):
        self._labels, self._bos_id = np.diff(starts) - 1, bos_id
        self._seen, self._counted = np.zeros(len(self._labels), bool), np.zeros(len(self._labels), np.int64)

    def add(self, scored: ScoredBatch) -> None:
        """Look at a batch that is scored."""
        begins = (scored.batch.tokens == self._bos_id) & (scored.batch.positions == 0) & (scored.batch.segments > 0)
        self._seen[scored.documents[begins]] = True
        np.add.at(self._counted, scored.documents[scored.batch.loss_mask], 1)

    def require(self, *, artifact: object) -> None:
        """Raise ContractError for the first document of which that is not so."""
        if not self._seen.all():
            first, count = int(np.flatnonzero(~self._seen)[0]), int((~self._seen).sum())
            expected = f"every document read from its BOS on (id {self._bos_id}, position 0), as in training"
            raise _broken(artifact, expected, f"document {first} without ({count} of {len(self._seen)})")
        if (wrong := np.flatnonzero(self._counted != self._labels)).size:
            first = int(wrong[0])
            expected = f"{self._labels[first]} labels of document {first}, its end among them, each once"
            raise _broken(artifact, expected, f"{self._counted[first]} ({wrong.size} of {len(self._seen)} documents differ)")


def require_alone(
    scores: DocumentScores,
    stream: TokenStream,
    score: Callable[[Batch], np.ndarray],
    *,
    context_length: int,
    stride: int,
    precision: str,
    artifact: object,
) -> None:
    """Raise ContractError where a document has another loss in a batch of one row that it has to itself.

    Two at the beginning, in the middle and at the end of those that are not too long, since the second of two may share a row
    with the first; where all are too long, the shortest. score: negative log likelihoods [1, T] of a batch of one row.
    """
    labels = np.diff(stream.starts[: len(scores.nll) + 1]) - 1
    short = np.flatnonzero(labels <= context_length + (WINDOWS - 1) * stride)
    first = np.arange(PLACES) * max(0, len(short) - 2) // (PLACES - 1)
    chosen = np.unique(np.concatenate([first, first + 1]).clip(0, max(0, len(short) - 1)))
    for index in short[chosen].tolist() if len(short) else [int(np.argmin(labels))]:
        ids = stream.document(index)
        rows = alone(ids, context_length=context_length, stride=stride)
        nll = np.concatenate([score(batch)[batch.loss_mask].astype(np.float64) for batch in rows])
        tokens = max(1, len(nll) - 1)
        pairs = {"the text": (nll[:-1].sum() / tokens, scores.nll[index] / tokens), "its end": (nll[-1], scores.end_nll[index])}
        for what, (expected, found) in pairs.items():
            if not abs(expected - found) <= TOLERANCE[precision] * max(1.0, abs(expected)):
                words = f"{expected:.6g} nats per token for {what} of document {index}, as scored alone"
                raise _broken(artifact, f"{words}, to {TOLERANCE[precision]:g}", f"{found:.6g} among the others")


def alone(ids: np.ndarray, *, context_length: int, stride: int) -> Iterator[Batch]:
    """A document (with BOS and EOS) as batches of one row, one window each: every label counts in the first window that
    reaches it, and windows end after `context_length` labels, then every `stride`."""
    labels, done = len(ids) - 1, 0
    while done < labels:
        end = min(labels, context_length if not done else done + stride)
        begin = max(0, end - context_length)
        rows = np.zeros((4, 1, context_length), np.int32)
        for row, content in zip(rows, (ids[begin:end], ids[begin + 1 : end + 1], 1, np.arange(end - begin)), strict=True):
            row[0, : end - begin] = content
        counted = np.zeros((1, context_length), bool)
        counted[0, done - begin : end - begin] = True
        yield Batch(rows[0], rows[1], counted, rows[2], rows[3])
        done = end
