"""Loss on the validation split, in the course of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch, validation_batches
from jaxlm.model import Params
from jaxlm.parallel import processes
from jaxlm.train.prepare import Parts
from jaxlm.train.state import put_batch
from jaxlm.train.step import score_step


class Validation(NamedTuple):
    """loss: mean negative log likelihood, nats per label. bits_per_byte: over the bytes that the labels stand for. first: the
    negative log likelihoods of the first batch, summed, nats."""

    loss: float
    bits_per_byte: float
    labels: int
    first: float

    def figures(self) -> dict[str, float | int]:
        """Those that are logged."""
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "labels": self.labels}


def label_bytes(labels: np.ndarray, mask: np.ndarray, byte_lengths: np.ndarray) -> int:
    """Bytes of text that the supervised labels [B, T] stand for; byte_lengths: int [V], 0 for special tokens."""
    return int(byte_lengths[labels[mask]].sum())


def validate(params: Params, parts: Parts, mesh: Mesh) -> Validation:
    """Score `eval.batches` batches of the validation split in their order, rows cut as in training.

    In a cluster every process reads all rows, and hears all figures. The sums over tokens are float64 on the host, so that
    they do not depend on the size of a batch.
    """
    cfg: RunConfig = parts.cfg
    nll, labels, size = [], 0, 0
    for batch in _batches(parts, limit=cfg.eval.batches):
        nll.append(_scored(params, batch, cfg, mesh))
        labels += int(batch.loss_mask.sum())
        size += label_bytes(batch.labels, batch.loss_mask, parts.tokenizer.byte_lengths)
    return Validation(sum(nll) / labels, sum(nll) / (math.log(2) * size), labels, nll[0])


def _batches(parts: Parts, *, limit: int) -> Iterator[Batch]:
    rows, length = parts.cfg.train.batch_size // parts.cfg.train.grad_accum, parts.cfg.model.context_length
    return iter(validation_batches(parts.data.val, batch_size=rows, context_length=length, limit=limit))


def _scored(params: Params, batch: Batch, cfg: RunConfig, mesh: Mesh) -> float:
    return float(processes.whole(score_step(params, put_batch(batch, cfg, mesh), cfg)).astype(np.float64).sum())


def require_validation(found: Validation, params: Params, parts: Parts, mesh: Mesh, *, artifact: object) -> None:
    """Raise ContractError where a validation was not of these parameters, for which its first batch is scored once more, or not
    over the labels and bytes that its rows of the split have, counted here in the index of the shards and in their ids."""
    cfg, stream = parts.cfg, parts.data.val
    first = _scored(params, next(_batches(parts, limit=1)), cfg, mesh)
    both_lost = not (math.isfinite(first) or math.isfinite(found.first))
    if not (both_lost or math.isclose(first, found.first, rel_tol=1e-6)):
        raise ContractError(
            "evaluation",
            artifact=artifact,
            expected=f"the loss of the parameters of this step, in the first batch {first:.9g} nats",
            found=f"{found.first:.9g}",
            remedy="Other parameters were scored than those that train. Go on from the last checkpoint.",
        )
    rows = cfg.train.batch_size // cfg.train.grad_accum
    positions = cfg.eval.batches * rows * cfg.model.context_length or len(stream)
    end = min(positions, len(stream) - 1)  # the first `end` tokens are inputs, those after them labels
    labels = end - int(np.searchsorted(stream.starts[1:-1], end, "right"))  # but for the BOS of the documents that begin there
    size = int(parts.tokenizer.byte_lengths[stream.slice(1, end + 1)].sum())
    counted = math.log(2) * found.bits_per_byte * size, found.loss * labels
    if found.labels != labels or (np.isfinite(counted).all() and not math.isclose(*counted, rel_tol=1e-9)):
        raise ContractError(
            "evaluation",
            artifact=artifact,
            expected=f"a validation over {labels} labels that stand for {size} bytes",
            found=f"{found.labels} labels, loss {found.loss:.9g}, bits per byte {found.bits_per_byte:.9g}",
            remedy="The validation counts something else than the rows of its split. Go on from the last checkpoint.",
        )
