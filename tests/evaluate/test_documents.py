"""Windows over documents: every label counts once, with the context that was promised, alone or packed with others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.contract import ContractError
from jaxlm.data import TokenStream, check_batch
from jaxlm.evaluate import Tally, scored_batches
from jaxlm.evaluate.documents import rows_of_windows, windows

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=10)


def stream_of(lengths):
    """Documents whose ids, counted through the stream, tell where they stand; each closed by id 0."""
    starts = np.cumsum([0, *lengths])
    ids = np.arange(1, starts[-1] + 1).astype("<u2")
    ids[starts[1:] - 1] = 0
    return TokenStream((ids,), np.array([0]), starts)


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 80), st.integers(1, 24), st.data())
def test_every_label_counts_once_and_has_its_context(length, context, data):
    stride = data.draw(st.integers(1, context))
    ids = np.arange(100, 100 + length)
    counted = []
    for window in windows(3, ids, context_length=context, stride=stride):
        inputs = window.ids[:-1]
        assert window.document == 3
        assert len(inputs) <= context
        assert window.ids.tolist() == list(range(window.ids[0], window.ids[0] + len(window.ids)))
        for at in range(len(inputs) - window.scored, len(inputs)):
            label = window.ids[at + 1]
            assert at + 1 >= min(label - 100, context - stride + 1)
            counted.append(int(label))
    assert counted == list(range(101, 100 + length))


@pytest.mark.parametrize(("context", "stride", "expected"), [
    (4, 4, [(0, 4, 4), (4, 8, 4), (6, 10, 2)]),
    (4, 2, [(0, 4, 4), (2, 6, 2), (4, 8, 2), (6, 10, 2)]),
    (4, 1, [(i, i + 4, 1 if i else 4) for i in range(7)]),
    (16, 1, [(0, 10, 10)]),
])  # fmt: skip
def test_windows_of_a_document_of_eleven_ids(context, stride, expected):
    made = windows(0, np.arange(11), context_length=context, stride=stride)
    assert [(int(w.ids[0]), int(w.ids[-1]), w.scored) for w in made] == expected


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_would_skip_labels_or_stand_still_is_refused(stride):
    with pytest.raises(ValueError, match=rf"expected a stride in 1\.\.8, the context, found {stride}"):
        next(windows(0, np.arange(30), context_length=8, stride=stride))


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 24))
def test_rows_keep_the_order_fit_the_context_and_waste_nothing(lengths, context):
    cut = [w for i, n in enumerate(lengths) for w in windows(i, np.arange(n), context_length=context, stride=context)]
    rows = list(rows_of_windows(iter(cut), context_length=context))
    assert [id(w) for row in rows for w in row] == [id(w) for w in cut]
    used = [sum(len(w.ids) for w in row) for row in rows]  # the last id of the last window needs no place
    assert all(0 < u <= context + 1 for u in used)
    assert all(u + len(row[0].ids) > context + 1 for u, row in zip(used, rows[1:], strict=False))


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(1, 24), st.integers(1, 5), st.integers(0, 12), st.data())
def test_batches_keep_the_batch_contract_and_count_every_label_once(lengths, context, size, limit, data):
    stride = data.draw(st.integers(1, context))
    stream = stream_of(lengths)
    kept = len(lengths) if limit == 0 else min(limit, len(lengths))
    counted = {d: [] for d in range(kept)}
    for scored in scored_batches(stream, batch_size=size, context_length=context, stride=stride, limit=limit):
        made, documents = scored
        assert made.tokens.shape == documents.shape == (size, context)
        check_batch(made, vocab_size=1000, context_length=context)
        assert ((documents == -1) == (made.segments == 0)).all()
        for b, t in np.argwhere(made.loss_mask):
            counted[int(documents[b, t])].append(int(made.labels[b, t]))
        for b, t in np.argwhere(made.segments > 0):
            assert made.tokens[b, t] in stream.document(documents[b, t])
    assert counted == {d: stream.document(d)[1:].tolist() for d in range(kept)}


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 16), st.integers(1, 4), st.data())
def test_the_tally_is_the_sum_over_each_document(lengths, context, size, data):
    stride = data.draw(st.integers(1, context))
    stream, bytes_of = stream_of(lengths), np.arange(1000) % 7 + 1
    bytes_of[0] = 0
    tally = Tally(len(lengths), bytes_of)
    # The loss of a label is a number of its own: its id, or 5000 for the end.
    for scored in scored_batches(stream, batch_size=size, context_length=context, stride=stride):
        labels = scored.batch.labels
        tally.add(scored, np.where(labels == 0, 5000, labels).astype(np.float32) / 3)
    found = tally.scores()
    for d in range(len(lengths)):
        text = stream.document(d)[1:-1]
        assert found.nll[d] == pytest.approx(float((text.astype(np.float32) / 3).sum(dtype=np.float64)), rel=1e-12)
        assert found.end_nll[d] == np.float32(5000) / np.float32(3)
        assert (found.tokens[d], found.bytes[d]) == (len(text), bytes_of[text].sum())
    assert found.nll.dtype == np.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_refused_where_it_counts_and_only_there(bad):
    scored = next(iter(scored_batches(stream_of([9, 9]), batch_size=2, context_length=12, stride=6)))
    nll = np.where(scored.batch.loss_mask, 1.0, bad).astype(np.float32)
    Tally(2, np.arange(100)).add(scored, nll)
    at = tuple(np.argwhere(scored.batch.loss_mask & (scored.documents == 1))[2])
    nll[at] = bad
    label = scored.batch.labels[at]
    with pytest.raises(
        ContractError, match=rf"at runs/x.* finite loss .*, found {bad} for id {label} in document 1 \(1 places\)"
    ):
        Tally(2, np.arange(100), artifact="runs/x").add(scored, nll)


def test_a_limit_beyond_the_documents_is_all_of_them():
    made = [list(scored_batches(stream_of([5, 6]), batch_size=1, context_length=8, stride=4, limit=n)) for n in (0, 2, 99)]
    assert [len(one) for one in made] == [2, 2, 2]
