"""The order of the rows, asked of the batches themselves: honest permutations of every size pass, other orders are seen."""

import functools

import numpy as np
import pytest

from jaxlm.data import batch, batches, permute
from jaxlm.train.probes_order import Places, order

SIZES = (1, 2, 3, 5, 8, 13, 14, 15, 16, 20, 33, 50, 100, 1000)


def probed(rows, batch_size, seed=0):
    """The probe, with the rows that `batch` takes."""

    def take(stream, step, wanted):
        return batch(stream, step=step, seed=seed, batch_size=batch_size, context_length=1, rows=wanted).tokens[:, 0]

    return order(take, rows=rows, batch_size=batch_size)


def drawn(rows, rng):
    """The probe of two orders of all rows that are drawn at random."""
    epochs = np.concatenate([rng.permutation(rows), rng.permutation(rows)])
    return order(lambda stream, step, wanted: epochs[step + wanted], rows=rows, batch_size=1)


def test_places_are_a_stream_of_rows_of_one_token():
    stream = Places(10)
    assert (stream.rows(1), stream.slice(9, 20).tolist()) == (10, [9, 10])
    assert batch(stream, step=0, seed=3, batch_size=10, context_length=1).tokens[:, 0].tolist() == [
        *permute(np.arange(10), 10, seed=3, epoch=0)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_honest_orders_of_any_size_pass(batch_size):
    for seed, rows in enumerate(size for size in SIZES if size >= batch_size):
        assert probed(rows, batch_size, seed).passed, (rows, seed)


@pytest.mark.parametrize(("rows", "batch_size"), [(4096, 512), (4097, 7), (100_003, 64), (10**9, 2000), (1 << 33, 8192)])
def test_of_many_rows_some_are_looked_at(rows, batch_size):
    found = probed(rows, batch_size)
    assert found.passed, found
    assert found.found == f"so with {896 if batch_size == 7 else 4096} of {rows} rows in two epochs"


@pytest.mark.parametrize("rows", [4, 12, 17, 24, 40, 64, 200])
def test_orders_drawn_at_random_pass(rows):
    rng = np.random.default_rng(rows)
    assert all(drawn(rows, rng).passed for _ in range(300))


@functools.cache
def shuffled_in_a_buffer(n, seed, size):
    rng, rest, out = np.random.default_rng(seed), list(range(n)), []
    buffer, rest = rest[:size], rest[size:]
    while buffer:
        at = rng.integers(len(buffer))
        out.append(buffer[at])
        buffer[at : at + 1] = rest[:1]
        rest = rest[1:]
    return np.array(out)


@functools.cache
def blocks(n, seed, epoch, size, inside):
    """Blocks in a random order, in order inside or shuffled as well."""
    rng = np.random.default_rng([seed, epoch])
    whole = [np.arange(n)[at : at + size] for at in range(0, n, size)]
    return np.concatenate([rng.permutation(whole[i]) if inside else whole[i] for i in rng.permutation(len(whole))])


ORDERS = {
    "identity": lambda i, n, seed, epoch: i,
    "reversed": lambda i, n, seed, epoch: n - 1 - i,
    "moved": lambda i, n, seed, epoch: (i + 7 * seed + 5 * epoch + 3) % n,
    "affine": lambda i, n, seed, epoch: (i * 3331 + 1234 + epoch) % n,
    "strided": lambda i, n, seed, epoch: (i * 401 + (i * 401) // n) % n,
    "xor": lambda i, n, seed, epoch: np.where((i ^ 5) < n, i ^ 5, i),
    "buffer": lambda i, n, seed, epoch: shuffled_in_a_buffer(n, epoch, n // 16)[i],
    "blocks": lambda i, n, seed, epoch: blocks(n, seed, epoch, 16, False)[i],
    "shuffled blocks": lambda i, n, seed, epoch: blocks(n, seed, epoch, 20, True)[i],
    "one block": lambda i, n, seed, epoch: blocks(n, seed, epoch, n // 2, True)[i],
    "the same again": lambda i, n, seed, epoch: permute(i, n, seed=seed, epoch=0),
    "turned round": lambda i, n, seed, epoch: np.abs((n - 1) * epoch - permute(i, n, seed=seed, epoch=0)),
    "later": lambda i, n, seed, epoch: permute((i + 11 * epoch) % n, n, seed=seed, epoch=0),
    "with replacement": lambda i, n, seed, epoch: np.random.default_rng([seed, epoch]).integers(0, n, n)[i],
    "half of them": lambda i, n, seed, epoch: permute(i % max(n // 2, 1), max(n // 2, 1), seed=seed, epoch=epoch),
    "out of range": lambda i, n, seed, epoch: permute(i, n, seed=seed, epoch=epoch) + 1,
}  # fmt: skip


@pytest.mark.parametrize("rows", [400, 20_021])
@pytest.mark.parametrize("kind", ORDERS)
def test_another_order_in_the_place_of_the_permutation_is_seen(monkeypatch, kind, rows):
    monkeypatch.setattr(batches, "permute", lambda i, n, *, seed, epoch: np.asarray(ORDERS[kind](i, n, seed, epoch)))
    monkeypatch.setattr("jaxlm.train.probes_order.LOOKED", 1024)
    found = probed(rows, 256)
    assert not found.passed, kind


@pytest.mark.parametrize("kind", ["identity", "reversed", "moved", "the same again", "later", "turned round"])
def test_so_it_is_in_an_epoch_of_a_few_rows(monkeypatch, kind):
    monkeypatch.setattr(batches, "permute", lambda i, n, *, seed, epoch: np.asarray(ORDERS[kind](i, n, seed, epoch)))
    assert not probed(20, 4).passed


def test_fewer_rows_than_were_asked_for_are_seen():
    found = order(lambda stream, step, wanted: (step * 4 + wanted)[: len(wanted) // 2 * 2], rows=999, batch_size=3)
    assert (found.passed, found.found) == (False, "342 rows where 512 were asked for")


def test_the_session_of_a_run_is_asked(finished, monkeypatch):
    from types import SimpleNamespace

    from jaxlm.run import Run
    from jaxlm.train.session import Session

    run = Run.load(finished)
    assert run.manifest.facts["probes"]["order"]["passed"]
    asked = SimpleNamespace(cfg=run.config)
    asked._batch = lambda *args: Session._batch(asked, *args)
    rows = run.data.train.rows(run.config.model.context_length)
    assert order(functools.partial(Session.first_ids, asked), rows=rows, batch_size=4).passed
    real = batch
    monkeypatch.setattr("jaxlm.train.session.batch", lambda stream, **k: real(stream, **{**k, "step": k["step"] // 2}))
    assert not order(functools.partial(Session.first_ids, asked), rows=rows, batch_size=4).passed
