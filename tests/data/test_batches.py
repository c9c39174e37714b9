"""Batches against an oracle that goes through the ids one by one; the order of rows; what a batch is a function of."""

import importlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.contract import ContractError, InputError
from jaxlm.data import Batch, batch, batch_crc, check_batch, row_crcs, validation_batches
from jaxlm.data.batches import rows_of

LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=12)


def oracle_row(stream, row, context):
    """Row `row` written token by token, from the documents: five lists."""
    flat = [(int(i), d) for d in range(stream.documents) for i in stream.document(d)]
    tokens, labels, mask, segments, positions = [], [], [], [], []
    segment = position = 0
    for t in range(row * context, (row + 1) * context):
        if row < 0 or t >= len(flat):
            for column, value in zip((tokens, labels, mask, segments, positions), (0, 0, False, 0, 0), strict=True):
                column.append(value)
            continue
        new = t == row * context or flat[t][1] != flat[t - 1][1]
        segment, position = (segment + 1, 0) if new else (segment, position + 1)
        follows = t + 1 < len(flat)
        tokens.append(flat[t][0])
        labels.append(flat[t + 1][0] if follows else 0)
        mask.append(follows and flat[t + 1][1] == flat[t][1])
        segments.append(segment)
        positions.append(position)
    return tokens, labels, mask, segments, positions


def assert_rows(made, stream, rows, context):
    for b, row in enumerate(rows):
        for name, found, expected in zip(Batch._fields, made, oracle_row(stream, row, context), strict=True):
            assert found[b].tolist() == expected, (name, row)


@settings(deadline=None, max_examples=120)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 33))
def test_rows_are_those_of_the_oracle(make_stream, lengths, shards, context):
    stream = make_stream(lengths, shards=shards)
    rows = np.array([*range(stream.rows(context)), -1])
    made = rows_of(stream, rows, context)
    assert_rows(made, stream, rows, context)
    assert [a.dtype for a in made] == [np.int32, np.int32, bool, np.int32, np.int32]
    check_batch(made, vocab_size=100, context_length=context)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 33))
def test_every_label_inside_a_document_is_supervised_once_in_an_epoch(make_stream, lengths, context):
    stream = make_stream(lengths)
    made = rows_of(stream, np.arange(stream.rows(context)), context)
    assert made.loss_mask.sum() == sum(length - 1 for length in lengths)
    expected = np.concatenate([stream.document(d)[1:] for d in range(stream.documents)])
    assert made.labels[made.loss_mask].tolist() == expected.tolist()


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 17), st.integers(1, 5), st.integers(0, 3))
def test_validation_gives_all_rows_in_order_and_fills_up_with_padding(make_stream, lengths, context, size, limit):
    stream = make_stream(lengths)
    count = stream.rows(context)
    made = list(validation_batches(stream, batch_size=size, context_length=context, limit=limit))
    assert len(made) == min(-(-count // size), limit or 10**9)
    for i, one in enumerate(made):
        wanted = np.arange(i * size, (i + 1) * size)
        assert_rows(one, stream, np.where(wanted < count, wanted, -1), context)
        check_batch(one, vocab_size=100, context_length=context)


# ---- order ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered(make_stream):
    """23 rows of 8, each of which can be told from the others by its tokens."""
    stream = make_stream([5, 9, 30, 2, 2, 60, 40, 37])
    rows = [tuple(oracle_row(stream, row, 8)[0]) for row in range(stream.rows(8))]
    assert len(set(rows)) == len(rows) == 23
    return stream, rows


def shares(batch_size, processes):
    """The rows of a batch, cut into as many parts."""
    return np.array_split(np.arange(batch_size), processes)


def taken(numbered, steps, *, batch_size, seed=0, processes=1):
    """Numbers of the rows that the steps take, the parts of the processes joined in order."""
    stream, rows = numbered
    options = {"seed": seed, "batch_size": batch_size, "context_length": 8}
    made = [batch(stream, step=s, rows=part, **options) for s in steps for part in shares(batch_size, processes)]
    return [rows.index(tuple(row)) for one in made for row in one.tokens.tolist()]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 1), (4, 2), (6, 3), (8, 8), (23, 1), (22, 3)])
def test_an_epoch_takes_every_row_once_whatever_the_batch_and_the_processes(numbered, batch_size, processes):
    order = taken(numbered, range(3 * 23), batch_size=batch_size, processes=processes)
    epochs = [order[e * 23 : (e + 1) * 23] for e in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert order == taken(numbered, range(len(order)), batch_size=1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 2**31), st.integers(1, 20), st.randoms(use_true_random=False))
def test_rows_of_a_batch_are_those_of_the_whole_batch_whichever_are_asked_for(numbered, step, seed, size, random):
    stream, _ = numbered
    options = {"step": step, "seed": seed, "batch_size": size, "context_length": 8}
    whole = batch(stream, **options)
    rows = np.array(random.choices(range(size), k=random.randint(1, size)))
    part = batch(stream, **options, rows=rows)
    for name in Batch._fields:
        assert (getattr(part, name) == getattr(whole, name)[rows]).all()
    again = batch(stream, **options)
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))
    check_batch(whole, vocab_size=100, context_length=8)


def test_another_seed_is_another_order(numbered):
    orders = {tuple(taken(numbered, range(23), batch_size=1, seed=seed)) for seed in range(50)}
    assert len(orders) == 50


def test_a_step_does_not_depend_on_the_steps_before_it(numbered):
    forwards = taken(numbered, range(40), batch_size=4)
    backwards = [taken(numbered, [step], batch_size=4) for step in reversed(range(40))]
    assert forwards == [row for one in reversed(backwards) for row in one]


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_corpus_smaller_than_one_batch_is_refused(numbered):
    with pytest.raises(InputError, match=r"--train\.batch-size: expected at most the 23 rows of 8 tokens .* found 24"):
        batch(numbered[0], step=0, seed=0, batch_size=24, context_length=8)


@pytest.mark.parametrize("rows", [[4], [-1, 0], []])
def test_rows_that_a_batch_does_not_have_are_refused(numbered, rows):
    with pytest.raises(ValueError, match="expected rows from 0 to 3, at least one"):
        batch(numbered[0], step=0, seed=0, batch_size=4, context_length=8, rows=np.array(rows, int))


# ---- checksum ------------------------------------------------------------------------------------------------------


def test_the_checksum_is_that_of_all_bytes_of_the_rows_in_order(numbered):
    made = batch(numbered[0], step=3, seed=1, batch_size=4, context_length=8)
    rows = [zlib.crc32(b"".join(array[row].tobytes() for array in made)) for row in range(4)]
    assert batch_crc(made) == zlib.crc32(b"".join(crc.to_bytes(4, "little") for crc in rows))
    parts = [row_crcs(Batch(*(array[first : first + 2] for array in made))) for first in (0, 2)]
    assert batch_crc(np.concatenate(parts)) == batch_crc(made) != batch_crc(np.concatenate(parts[::-1]))
    assert batch_crc(made) == batch_crc(Batch(*(np.asfortranarray(array) for array in made)))
    for name in Batch._fields:
        other = getattr(made, name).copy()
        other[2, 5] = not other[2, 5] if name == "loss_mask" else other[2, 5] + 1
        assert batch_crc(made._replace(**{name: other})) != batch_crc(made)


# ---- the last label of a row ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [1, -1])
def test_a_last_label_that_is_not_the_token_that_follows_is_refused(numbered, monkeypatch, other):
    module = importlib.import_module("jaxlm.data.batches")
    stream, real = numbered[0], module.rows_of

    def wrong(*arguments):
        made = real(*arguments)
        labels = made.labels.copy()
        labels[:, -1] += other
        return made._replace(labels=labels)

    monkeypatch.setattr(module, "rows_of", wrong)
    with pytest.raises(ContractError, match=r"row \d+ of the split: expected the token that follows it as its last label"):
        batch(stream, step=0, seed=0, batch_size=8, context_length=8)
    with pytest.raises(ContractError, match="row 0 of the split"):
        list(validation_batches(stream, batch_size=8, context_length=8))
