"""What a step is fed against what the shards hold at its places, worked out a second time."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxlm.contract import ContractError, Manifest
from jaxlm.data import Batch, Prefetcher, ShardSet, TokenStream, batch, permute
from jaxlm.run import History, Run
from jaxlm.train import fit
from jaxlm.train.reread import Reread, rows_in_order
from jaxlm.train.session import Session
from tests.conftest import tiny_config

BOS_EOS = 299  # one id for both, as in a tokenizer with one special token
T, SIZE = 16, 6


def data(shards=(1200, 700, 40), seed=0):
    """A training split in several shards, in memory, of documents of some 30 tokens; the last row is padded."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 299, sum(shards)).astype(np.uint16)
    starts = np.unique([0, *np.cumsum(rng.integers(3, 60, 200)), len(ids)])
    starts = starts[starts <= len(ids)]
    ids[starts[:-1]] = ids[starts[1:] - 1] = BOS_EOS
    offsets = np.cumsum([0, *shards])[:-1]
    stream = TokenStream(tuple(np.split(ids, offsets[1:])), offsets, starts)
    split = {"tokens": len(ids), "shards": {f"train-{i:05d}.bin": size for i, size in enumerate(shards)}}
    return ShardSet(None, Manifest("data", {"splits": {"train": split}}, {}, {}, {}), stream, stream)


def config(seed=3):
    return RunConfig(
        name="x", data=DataConfig(order_seed=seed), model=ModelConfig(context_length=T), train=TrainConfig(batch_size=SIZE)
    )


def fed(step, rows=None, seed=3, held=None):
    """The batch that the loader makes."""
    stream = (held or data()).train
    return batch(stream, step=step, seed=seed, batch_size=SIZE, context_length=T, rows=rows)


def require(made, step, rows=None):
    examples = step * SIZE + (np.arange(SIZE) if rows is None else rows)
    Reread(data(), config()).require(made, examples, step=step, artifact="run, batch")


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4096, 4097])
def test_the_order_worked_out_again_is_that_of_the_loader(rows):
    examples = np.arange(3 * rows + 1)
    found = rows_in_order(examples, rows, seed=7)
    for epoch in range(3):
        wanted = permute(np.arange(rows), rows, seed=7, epoch=epoch)
        assert np.array_equal(found[epoch * rows : (epoch + 1) * rows], wanted)
    assert not rows_in_order(np.arange(10**9, 10**9 + 99), 7_000_000_000, seed=1).max() >= 7_000_000_000


def test_every_batch_of_three_epochs_holds_what_the_shards_hold():
    held, reread = data(), Reread(data(), config())
    rows = held.train.rows(T)
    assert rows == reread.rows == 122
    for step in range(3 * rows // SIZE):
        reread.require(fed(step, held=held), step * SIZE + np.arange(SIZE), step=step, artifact="run")
    for step in (40, 2, 41):  # back, as after a rollback, and forward again
        reread.require(fed(step, held=held), step * SIZE + np.arange(SIZE), step=step, artifact="run")


@pytest.mark.parametrize("rows", [[0, 1], [4, 5], [1, 3, 5]])
def test_a_share_is_looked_at_like_the_whole(rows):
    for step in range(25):
        require(fed(step, np.array(rows)), step, np.array(rows))
    with pytest.raises(ContractError, match="first id in row 0"):
        require(fed(3, np.array(rows)), 3, np.array(rows) - (rows[-1] == 5) + (rows[-1] != 5))


def noised(made):
    tokens, labels = made.tokens.copy(), made.labels.copy()
    tokens[:, 7] = (tokens[:, 7] + 1) % 299
    labels[:, 6] = tokens[:, 7]
    return made._replace(tokens=tokens, labels=labels)


def stale(made):
    return Batch(*(np.concatenate([new[:3], old[:3]]) for new, old in zip(made, fed(10), strict=True)))


def last_label(made):
    labels = made.labels.copy()
    labels[:, -1] = (labels[:, -1] + 1) % 299
    return made._replace(labels=labels)


def exchanged(made):
    return Batch(*(array[[1, 0, 2, 3, 4, 5]] for array in made))


FAULTS = {
    "other tokens": (noised, r"expected ids .* at place 7 of row 5, which is row \d+ of the split, found"),
    "half of the batch before": (stale, r"expected \d+ as its first id in row 3, which is row \d+ of the split, found"),
    "another last label": (last_label, r"expected labels \[\d+\] at place 15 of row 5"),
    "rows exchanged": (exchanged, "first id in row 0"),
    "fewer rows": (lambda made: Batch(*(array[:4] for array in made)), "expected 6 rows, found 4"),
    "the next batch": (lambda made: fed(12), "first id in row 0"),
    "another seed": (lambda made: fed(11, seed=4), "first id in row 0"),
    "padded early": (
        lambda made: made._replace(segments=made.segments * (np.arange(T) < 9)), "expected 16 tokens in row 5, .* found 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_what_the_shards_do_not_hold_there_is_refused(kind):
    fault, words = FAULTS[kind]
    require(fed(11), 11)
    with pytest.raises(ContractError, match=f"at run, batch: .*{words}"):
        require(fault(fed(11)), 11)


def test_after_a_rollback_and_with_another_batch_size_the_places_are_those_of_the_history():
    rollback = {"event": "rollback", "step": 9, "to": 4, "detector": "", "past": 5, "undone": "", "sha256": "", "removed": {}}
    declared = {"event": "declared", "run": "", "step": 7, "fields": {"train.batch_size": (4, SIZE)}, "data": 1, "new_data": 1}
    session = SimpleNamespace(
        cfg=config(), rows=None, history=History.of([rollback, declared]), reread=Reread(data(), config())
    )
    session.layout = SimpleNamespace(path="run")
    for step in (7, 8, 30):
        made = fed(session.history.index(step))
        Session.require_fed(session, made, step)
        with pytest.raises(ContractError, match=f"run, batch of step {step + 1}: "):
            Session.require_fed(session, fed(step), step)


def test_a_run_stops_at_a_batch_that_was_changed_behind_the_prefetcher(finished, monkeypatch, tmp_path):
    def once(made):
        tokens = made.tokens.copy()
        tokens[:, 0] = (tokens[:, 0] + 1) % 256
        return made._replace(tokens=tokens)

    def prefetcher(share, **options):
        return Prefetcher(lambda step: once(share(step)) if step == 5 else share(step), **options)

    monkeypatch.setattr("jaxlm.train.loop.Prefetcher", prefetcher)
    cfg = tiny_config()
    parts = {name: dataclasses.replace(getattr(cfg, name), path=str(finished / name)) for name in ("tokenizer", "data")}
    with pytest.raises(ContractError, match=r"out, batch of step 6: expected .* as its first id in row 0"):
        fit(dataclasses.replace(cfg, **parts), out=tmp_path / "out", say=lambda line: None)
    run = Run.load(tmp_path / "out")
    assert run.checkpoints.steps() == [4]
    assert len(run.telemetry()) == 5


def test_the_batches_of_a_run_are_known(finished):
    run = Run.load(finished)
    session = SimpleNamespace(cfg=run.config, rows=None, history=run.history(), layout=run.layout)
    session.reread = Reread(run.data, run.config)
    for step in range(300):
        made = batch(run.data.train, step=step, seed=0, batch_size=4, context_length=32)
        functools.partial(Session.require_fed, session)(made, step)
