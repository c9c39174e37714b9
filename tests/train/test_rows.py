"""The facts of a batch: the same from the whole batch as from the rows on the devices."""

import numpy as np
import pytest

from jaxlm.config.schema import MeshConfig
from jaxlm.data import Batch, batch_crc
from jaxlm.parallel import make_mesh
from jaxlm.train.rows import batch_facts
from jaxlm.train.state import put_batch
from jaxlm.train.validate import label_bytes
from tests.conftest import tiny_config


def rows_of(*numbers):
    """A batch of these rows of a stream."""
    ids = np.arange(9)[None, :] + np.array(numbers)[:, None] * 8
    tokens, labels = ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)
    return Batch(tokens, labels, tokens >= 0, np.ones_like(tokens), np.arange(8, dtype=np.int32) + 0 * tokens)


def repeated(numbers, epochs=0):
    """The share of repeated rows in a batch of `numbers`."""
    return batch_facts(rows_of(*numbers), np.ones(300, int), tiny_config(), make_mesh(MeshConfig()), epochs=epochs).repeated


def test_rows_that_repeat_each_other_are_counted_in_their_epoch():
    assert repeated([1, 2, 3, 4]) == 0.0
    assert repeated([1, 2, 1, 2]) == 0.5  # two hosts that read the same shard
    assert repeated([1, 1, 1, 1]) == 0.75
    assert repeated([1, 2, 1, 2], np.array([0, 0, 1, 1])) == 0.0  # the end of an epoch and the start of the next one
    assert repeated([1, 2, 1, 1], np.array([0, 0, 1, 1])) == 0.25


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=4, rules="dp"), MeshConfig(data=2, tensor=2, rules="tp")])
def test_facts_and_batches_from_rows_are_those_of_the_whole_batch(mesh):
    import dataclasses

    cfg = dataclasses.replace(tiny_config(), mesh=mesh)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, (2, 4, 32), dtype=np.int32)
    mask = rng.random((4, 32)) < 0.3
    made = Batch(ids[0], ids[1], mask, np.ones((4, 32), np.int32), np.zeros((4, 32), np.int32))
    lengths = rng.integers(0, 9, 300)
    whole = batch_facts(made, lengths, cfg, make_mesh(mesh))
    assert whole.crc == batch_crc(made)
    assert whole.bytes == label_bytes(made.labels, mask, lengths)
    assert whole.supervised == pytest.approx(mask.mean())
    assert whole.repeated == 0.0
    rows = np.arange(4)
    assert batch_facts(made, lengths, cfg, make_mesh(mesh), rows=rows) == whole
    put, shares = put_batch(made, cfg, make_mesh(mesh)), put_batch(made, cfg, make_mesh(mesh), rows=rows)
    for a, b in zip(put, shares, strict=True):
        assert a.sharding == b.sharding
        assert (np.asarray(a) == np.asarray(b)).all()
