"""What the telemetry says of a batch, put together from the rows that each process holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch, batch_crc, row_crcs, row_sums
from jaxlm.parallel import processes
from jaxlm.train.state import rules


class BatchFacts(NamedTuple):
    """Of a whole batch. crc: `batch_crc`. bytes: of text that the supervised labels stand for. labels: that are supervised,
    supervised: their share. repeated: share of rows that repeat another one of the same epoch. content: sum of `row_sums`,
    mod 2^32. epoch: of its first row."""

    crc: int
    bytes: int
    labels: int
    supervised: float
    repeated: float
    content: int
    epoch: int


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
    each row, uint32 [B, 4], travel over the devices, and all processes must call this.
    """
    lengths = np.where(made.loss_mask, byte_lengths[made.labels], 0).sum(axis=1)
    columns = [row_crcs(made), lengths, made.loss_mask.sum(axis=1), row_sums(made)]
    facts = np.stack(columns, axis=1).astype(np.uint32)
    if rows is not None:
        layout = NamedSharding(mesh, P(rules(cfg).activation("BT")[0], None))
        facts = processes.whole(processes.put(facts, layout, rows=rows, length=cfg.train.batch_size))
    examples = np.stack([facts[:, 0].astype(np.int64), np.broadcast_to(epochs, len(facts))], axis=1)
    repeated = 1 - len(np.unique(examples, axis=0)) / len(facts)
    labels = int(facts[:, 2].sum())
    return BatchFacts(
        crc=batch_crc(facts[:, 0]),
        bytes=int(facts[:, 1].sum()),
        labels=labels,
        supervised=labels / (len(facts) * made.tokens.shape[1]),
        repeated=repeated,
        content=int(facts[:, 3].sum(dtype=np.uint32)),
        epoch=int(np.min(epochs)),
    )


def require_computed(facts: BatchFacts, *, content: Any, labels: Any, artifact: object) -> None:
    """Raise ContractError where a step was not computed from the batch with these facts, all of it and once.

    content, labels: what the devices found, of the telemetry; labels: float32, which counts exactly up to 2^24, and past that
    may lose one in each sum that it is part of.
    """
    found, counted = int(content), float(labels)
    if found == facts.content and abs(counted - facts.labels) <= (facts.labels >> 24) * 1024:
        return
    raise ContractError(
        "batch",
        artifact=artifact,
        expected=f"the batch that was made for it, {facts.labels} labels, content {facts.content:08x}",
        found=f"{counted:.0f} labels, content {found:08x} on the devices",
        remedy="What lies on the devices is not what the host made, or the step left out a part of it: nothing of this step is "
        "saved. Go on from the last checkpoint.",
    )
