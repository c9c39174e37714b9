"""The facts of a batch: the same from the whole batch as from the rows on the devices."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.config.schema import MeshConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch, batch_crc, content_sum
from jaxlm.parallel import make_mesh
from jaxlm.run import Run
from jaxlm.train import fit
from jaxlm.train.rows import BatchFacts, batch_facts, require_computed
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


MESHES = {
    "single": MeshConfig(),
    "dp": MeshConfig(data=4, rules="dp"),
    "tp": MeshConfig(data=2, tensor=2, rules="tp"),
    "context": MeshConfig(data=2, context=4, rules="dp"),
}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_facts_and_batches_from_rows_are_those_of_the_whole_batch(mesh):
    cfg = dataclasses.replace(tiny_config(), mesh=mesh)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, (2, 4, 32), dtype=np.int32)
    mask = rng.random((4, 32)) < 0.3
    made = Batch(ids[0], ids[1], mask, np.ones((4, 32), np.int32), np.zeros((4, 32), np.int32))
    lengths = rng.integers(0, 9, 300)
    whole = batch_facts(made, lengths, cfg, make_mesh(mesh))
    assert whole.crc == batch_crc(made)
    assert whole.labels == mask.sum()
    assert whole.bytes == label_bytes(made.labels, mask, lengths)
    assert whole.supervised == pytest.approx(mask.mean())
    assert whole.repeated == 0.0
    rows = np.arange(4)
    assert batch_facts(made, lengths, cfg, make_mesh(mesh), rows=rows) == whole
    put, shares = put_batch(made, cfg, make_mesh(mesh)), put_batch(made, cfg, make_mesh(mesh), rows=rows)
    for a, b in zip(put, shares, strict=True):
        assert a.sharding == b.sharding
        assert (np.asarray(a) == np.asarray(b)).all()
    with jax.set_mesh(make_mesh(mesh)):
        assert int(jax.jit(content_sum)(put)) == whole.content


def facts(labels):
    return BatchFacts(crc=1, bytes=2, labels=labels, supervised=1.0, repeated=0.0, content=7, epoch=0)


def test_a_step_of_another_batch_or_of_a_part_of_it_is_refused():
    require_computed(facts(100), content=np.uint32(7), labels=np.float32(100), artifact="run, step 3")
    for content, labels in ((8, 100), (7, 99), (7, 101)):
        with pytest.raises(ContractError, match=rf"run, step 3: expected .* 100 labels, content 0+7, found {labels} labels"):
            require_computed(facts(100), content=np.uint32(content), labels=np.float32(labels), artifact="run, step 3")


def test_a_count_that_float32_cannot_hold_is_no_other_batch():
    require_computed(facts(2**24 + 1), content=7, labels=np.float32(2**24 + 1), artifact="run, step 3")
    with pytest.raises(ContractError, match="16773120 labels"):
        require_computed(facts(2**24 + 1), content=7, labels=np.float32(2**24 - 4096), artifact="run, step 3")


def test_devices_that_hold_the_batch_before_stop_the_run_and_nothing_of_it_is_saved(finished, monkeypatch, tmp_path):
    import jaxlm.train.session as session

    real, held = session.put_batch, []

    def stale(made, *arguments, **options):
        held.append(made)
        return real(held[4] if len(held) > 5 else made, *arguments, **options)

    monkeypatch.setattr(session, "put_batch", stale)
    cfg = tiny_config(grad_accum=2)
    parts = {name: dataclasses.replace(getattr(cfg, name), path=str(finished / name)) for name in ("tokenizer", "data")}
    with pytest.raises(ContractError, match=r"out, step 6: expected the batch that was made for it"):
        fit(dataclasses.replace(cfg, **parts), out=tmp_path / "out", say=lambda line: None)
    run = Run.load(tmp_path / "out")
    assert run.checkpoints.steps() == [4]
    assert len(run.telemetry()) == 5
