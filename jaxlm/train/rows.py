"""What the telemetry says of a batch, put together from the rows that each process holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import RunConfig
from jaxlm.data import Batch, batch_crc, row_crcs
from jaxlm.parallel import processes
from jaxlm.train.state import rules


class BatchFacts(NamedTuple):
    """Of a whole batch. crc: `batch_crc`. bytes: of text that the supervised labels stand for. supervised: share of labels.
    repeated: share of rows that repeat another one of the same epoch."""

    crc: int
    bytes: int
    supervised: float
    repeated: float


def batch_facts(
    made: Batch,
    byte_lengths: np.ndarray,
    cfg: RunConfig,
    mesh: Mesh,
    *,
    rows: np.ndarray | None = None,
    epochs: np.ndarray | int = 0,
) -> BatchFacts:
    """The facts of the batch of which `made` is this process's share, in every process.

    rows: those of `made`, or None where it is whole. byte_lengths: int [V], 0 for special tokens. epochs: int [B], of the rows
    of the whole batch, or one for all: a batch at the border of two epochs may hold a row in each. With `rows` the figures of
    each row, uint32 [B, 3], travel over the devices, and all processes must call this.
    """
    lengths = np.where(made.loss_mask, byte_lengths[made.labels], 0).sum(axis=1)
    facts = np.stack([row_crcs(made), lengths, made.loss_mask.sum(axis=1)], axis=1).astype(np.uint32)
    if rows is not None:
        layout = NamedSharding(mesh, P(rules(cfg).activation("BT")[0], None))
        facts = processes.whole(processes.put(facts, layout, rows=rows, length=cfg.train.batch_size))
    supervised = int(facts[:, 2].sum()) / (len(facts) * made.tokens.shape[1])
    examples = np.stack([facts[:, 0].astype(np.int64), np.broadcast_to(epochs, len(facts))], axis=1)
    repeated = 1 - len(np.unique(examples, axis=0)) / len(facts)
    return BatchFacts(batch_crc(facts[:, 0]), int(facts[:, 1].sum()), supervised, repeated)
