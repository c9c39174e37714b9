"""Batches: rows of packed documents, as pure functions of stream, seed and step.

Axes: B row, T position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlm.contract import ContractError, InputError
from jaxlm.data.order import permute
from jaxlm.data.shards import TokenStream

Array = Any  # np.ndarray as it is made, jax.Array once it is on the devices


class Batch(NamedTuple):
    """tokens, labels: int32 [B, T]. loss_mask: bool, where the label is supervised. segments: int32, 1 for the row's first
    document, then counting up, 0 for padding. positions: int32, from 0 at each document's start and at the row's start."""

    tokens: Array
    labels: Array
    loss_mask: Array
    segments: Array
    positions: Array


def rows_of(stream: TokenStream, rows: np.ndarray, context_length: int) -> Batch:
    """The rows with these numbers, int [B]; a negative number is a row of padding.

    Row i is tokens i*T .. i*T+T of the stream, the labels shifted by one. A label is supervised where it belongs to the
    document of its input: EOS is predicted, the BOS of the next document is not.
    """
    T, end = context_length, len(stream)
    rows = np.asarray(rows, np.int64)
    first_B = np.where(rows < 0, end, rows * T)
    pieces = [stream.slice(int(first), int(first) + T + 1) for first in first_B]
    ids = np.stack([np.pad(piece, (0, T + 1 - len(piece))) for piece in pieces]).astype(np.int32)
    at_BT = first_B[:, None] + np.arange(T + 1)[None, :]
    document_BT = np.searchsorted(stream.starts, at_BT, "right") - 1
    real_BT = at_BT < end
    begins_BT = np.maximum(stream.starts[np.minimum(document_BT, stream.documents - 1)], first_B[:, None])
    inside = real_BT[:, :-1]
    return Batch(
        tokens=ids[:, :-1].copy(),
        labels=ids[:, 1:].copy(),
        loss_mask=real_BT[:, 1:] & (document_BT[:, 1:] == document_BT[:, :-1]),
        segments=np.where(inside, document_BT[:, :-1] - document_BT[:, :1] + 1, 0).astype(np.int32),
        positions=np.where(inside, (at_BT - begins_BT)[:, :-1], 0).astype(np.int32),
    )


def batch(
    stream: TokenStream, *, step: int, seed: int, batch_size: int, context_length: int, rows: np.ndarray | None = None
) -> Batch:
    """The batch of step `step` (from 0): a pure function of its arguments.

    Examples are taken from the endless sequence permutation(epoch 0), permutation(epoch 1), ...; step s takes examples
    s * batch_size on. rows: the rows of the batch that are wanted, int, each from 0 to batch_size - 1; all by default. A
    process of several asks for those that its devices need, and nothing else is read; which process asks changes no example.
    Raises InputError where the stream has fewer rows than one batch, ContractError for a row whose last label is another token
    than the one that follows it.
    """
    there = stream.rows(context_length)
    if there < batch_size:
        raise InputError(
            f"--train.batch-size: expected at most the {there} rows of {context_length} tokens that the training split has, "
            f"found {batch_size}; give more text, a smaller batch or a shorter context"
        )
    rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if not rows.size or np.any((rows < 0) | (rows >= batch_size)):
        raise ValueError(f"expected rows from 0 to {batch_size - 1}, at least one, found {rows.tolist()}")
    wanted = step * batch_size + rows
    epochs, indices = wanted // there, wanted % there
    chosen = np.empty(len(rows), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permute(indices[here], there, seed=seed, epoch=int(epoch))
    return _with_successors(stream, chosen, context_length)


def validation_batches(stream: TokenStream, *, batch_size: int, context_length: int, limit: int = 0) -> Iterator[Batch]:
    """All rows in their order, the last batch filled up with padding. limit: batches at most; 0: all."""
    rows = stream.rows(context_length)
    count = -(-rows // batch_size)
    for index in range(min(count, limit) if limit else count):
        wanted = index * batch_size + np.arange(batch_size)
        yield _with_successors(stream, np.where(wanted < rows, wanted, -1), context_length)


def _with_successors(stream: TokenStream, rows: np.ndarray, context_length: int) -> Batch:
    """`rows_of`, the last label of each row compared with the token that the stream has there: of all labels it is the one
    that no token in the row is a witness of."""
    made, T = rows_of(stream, rows, context_length), context_length
    for row, label, supervised in zip(rows.tolist(), made.labels[:, -1].tolist(), made.loss_mask[:, -1].tolist(), strict=True):
        if supervised and [label] != (following := stream.slice(row * T + T, row * T + T + 1).tolist()):
            raise ContractError(
                "batch",
                artifact=f"row {row} of the split",
                expected=f"the token that follows it as its last label, {following}",
                found=label,
                remedy="The shards or the loader are wrong.",
            )
    return made


def row_crcs(made: Batch) -> np.ndarray:
    """CRC-32 over all arrays of each row, uint32 [B]."""
    crcs = np.zeros(len(made.tokens), np.uint32)
    for array in made:
        for row, content in enumerate(np.ascontiguousarray(array)):
            crcs[row] = zlib.crc32(content.view(np.uint8).data, int(crcs[row]))
    return crcs


def batch_crc(made: Batch | np.ndarray) -> int:
    """What the telemetry remembers a batch by: CRC-32 over the `row_crcs` of a batch, or over those given, little-endian.

    Of rows, so that processes which hold different rows can put it together.
    """
    crcs = made if isinstance(made, np.ndarray) else row_crcs(made)
    return zlib.crc32(crcs.astype("<u4").tobytes())
