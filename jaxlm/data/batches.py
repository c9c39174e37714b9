"""Batches: rows of packed documents, as pure functions of stream, seed and step.

Axes: B row, T position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlm.contract import InputError
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
    stream: TokenStream, *, step: int, seed: int, batch_size: int, context_length: int, host: int = 0, hosts: int = 1
) -> Batch:
    """The batch of step `step` (from 0): a pure function of its arguments.

    Rows are taken from the endless sequence permutation(epoch 0), permutation(epoch 1), ...; step s takes rows
    s * batch_size on. A host gets its contiguous share, so that the order of examples does not depend on `hosts`.
    Raises InputError where the stream has fewer rows than one batch.
    """
    rows = stream.rows(context_length)
    if rows < batch_size:
        raise InputError(
            f"--train.batch-size: expected at most the {rows} rows of {context_length} tokens that the training split has, "
            f"found {batch_size}; give more text, a smaller batch or a shorter context"
        )
    if batch_size % hosts or not 0 <= host < hosts:
        raise ValueError(f"expected a batch_size divisible by hosts and a host below it, found {batch_size}, {hosts}, {host}")
    share = batch_size // hosts
    wanted = step * batch_size + host * share + np.arange(share)
    epochs, indices = wanted // rows, wanted % rows
    chosen = np.empty(share, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permute(indices[here], rows, seed=seed, epoch=int(epoch))
    return rows_of(stream, chosen, context_length)


def validation_batches(stream: TokenStream, *, batch_size: int, context_length: int, limit: int = 0) -> Iterator[Batch]:
    """All rows in their order, the last batch filled up with padding. limit: batches at most; 0: all."""
    rows = stream.rows(context_length)
    count = -(-rows // batch_size)
    for index in range(min(count, limit) if limit else count):
        wanted = index * batch_size + np.arange(batch_size)
        yield rows_of(stream, np.where(wanted < rows, wanted, -1), context_length)


def batch_crc(made: Batch) -> int:
    """CRC-32 over all arrays of a batch: what the telemetry remembers it by."""
    crc = 0
    for array in made:
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    return crc
