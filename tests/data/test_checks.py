"""The batch contract: kept by every batch that is made, broken by every planted fault, which is named with its place."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxlm.contract import ContractError
from jaxlm.data import Batch, TokenStream, batch, check_batch
from jaxlm.data.batches import rows_of

T = 16


@pytest.fixture(scope="module")
def good(make_stream):
    """Rows of 16: documents of 7, 12, 20 and 5 ids; the last row is padded from position 12 on, and one row is padding."""
    return rows_of(make_stream([7, 12, 20, 5]), np.array([0, 1, 2, -1]), T)


def spoiled(made, name, row, at, value):
    array = getattr(made, name).copy()
    array[row, at] = value
    return made._replace(**{name: array})


def check(made, **options):
    check_batch(made, **{"vocab_size": 100, "context_length": T, **options})


def broken(made, match, **options):
    with pytest.raises(ContractError, match=match) as caught:
        check(made, label="step 7", **options)
    assert (caught.value.contract, caught.value.artifact) == ("batch", "step 7")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 30), min_size=3, max_size=10), st.integers(1, 24), st.integers(0, 20), st.integers(1, 4))
def test_every_batch_that_is_made_keeps_it(make_stream, lengths, context, step, size):
    stream = make_stream(lengths)
    assume(stream.rows(context) >= size)
    check(batch(stream, step=step, seed=1, batch_size=size, context_length=context), context_length=context)


# name, row, position, value: what the message says. Row 0 is documents of 7 and 9 (cut) ids; row 2 is 16, padded from 12 on.
FAULTS = [
    ("tokens", 1, 3, 100, r"expected ids in 0\.\.99, found 100 at row 1, position 3"),
    ("tokens", 0, 0, -1, r"expected ids in 0\.\.99, found -1 at row 0, position 0"),
    ("tokens", 3, 15, 2**31 - 1, r"found 2147483647 at row 3, position 15"),
    ("labels", 1, 3, 100, r"expected labels in 0\.\.99, found 100 at row 1, position 3"),
    ("labels", 0, 15, -100, r"expected labels in 0\.\.99, found -100 at row 0, position 15"),
    ("loss_mask", 2, 13, True, r"expected no supervised padding \(segment 0\), found 0 at row 2, position 13"),
    ("loss_mask", 3, 0, True, r"expected no supervised padding \(segment 0\), found 0 at row 3, position 0"),
    ("loss_mask", 0, 6, True, r"expected a supervised label in the document of its input, found 2 at row 0, position 6"),
    ("segments", 2, 5, 0, r"found .* at row 2, position [45]"),
    ("segments", 2, 15, 3, r"expected padding at the end of a row, found 3 at row 2, position 15"),
    ("segments", 0, 3, -1, r"expected segments >= 0, found -1 at row 0, position 3"),
    ("positions", 0, 7, 7, r"expected positions that restart at documents .*, found 7 at row 0, position 7"),
    ("positions", 1, 3, 4, r"expected positions that restart at documents .*, found 4 at row 1, position 3"),
    ("positions", 0, 0, 1, r"expected position 0 at the start of a row, found 1 at row 0, position 0"),
    ("positions", 2, 14, -1, r"expected positions below the trained 16, found -1 at row 2, position 14"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "at", "value", "match"), FAULTS)
def test_one_wrong_value_is_named_with_its_place(good, name, row, at, value, match):
    check(good)
    broken(spoiled(good, name, row, at, value), match)


@pytest.mark.parametrize("shift", [0, 2])
def test_labels_that_are_not_shifted_by_one_are_refused(good, shift):
    labels = good.tokens if shift == 0 else np.roll(good.tokens, -2, axis=1)
    broken(
        good._replace(labels=labels), r"expected labels\[t\] = tokens\[t \+ 1\], found \d+ at row 0, position 0 \(\d+ places\)"
    )


def test_positions_that_do_not_restart_at_documents_are_refused(good):
    through = np.where(good.segments > 0, np.arange(T), 0).astype(np.int32)
    broken(
        good._replace(positions=through), "positions that restart at documents and count by one, found 7 at row 0, position 7"
    )


def test_positions_past_the_trained_context_are_refused(make_stream):
    long = rows_of(make_stream([40]), np.array([0]), 32)
    check(long, context_length=32)
    broken(long, "expected positions below the trained 31, found 31 at row 0, position 31", context_length=31)


def test_padding_in_the_middle_is_refused_with_its_place(good):
    unsupervised = spoiled(spoiled(good, "loss_mask", 0, slice(3, 7), False), "loss_mask", 0, slice(2, 3), False)
    hole = spoiled(unsupervised, "segments", 0, slice(4, 6), 0)
    broken(spoiled(hole, "positions", 0, slice(4, 6), 0), "expected padding at the end of a row, found 1 at row 0, position 6")


def test_segments_that_jump_or_begin_elsewhere_are_refused(good):
    jump = good.segments + (good.segments == 2)
    broken(good._replace(segments=jump), "expected segments that count up by one, found 3 at row 0, position 7")
    late = good.segments + (good.segments > 0)
    broken(good._replace(segments=late), r"expected segment 1 .* at the start of a row, found 2 at row 0, position 0")


def test_too_small_a_supervised_share_is_refused(good):
    share = good.loss_mask.mean()
    check(good, min_supervised=share - 1e-6)
    broken(good, rf"expected at least {share + 0.01:.1%} supervised labels, found {share:.1%}", min_supervised=share + 0.01)
    broken(good._replace(loss_mask=np.zeros_like(good.loss_mask)), "supervised labels, found 0.0%", min_supervised=1e-3)


CHANGES = {
    "int64": lambda a: a.astype(np.int64),
    "float32": lambda a: a.astype(np.float32),
    "uint32": lambda a: a.astype(np.uint32),
    "short": lambda a: a[:, :-1],
    "few": lambda a: a[:-1],
    "3d": lambda a: a[None],
    "flat": lambda a: a.reshape(-1),
}


@pytest.mark.parametrize("name", Batch._fields)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_dtype_or_shape_is_refused_by_name(good, name, change):
    broken(good._replace(**{name: change(getattr(good, name))}), r"expected \w+ as (int32|bool) \[.*\], found \w+ \[.*\]")


@pytest.mark.parametrize("cut", [lambda a: a[:0], lambda a: a[:, :0], lambda a: a[0]])
def test_a_batch_of_nothing_and_one_without_rows_are_refused(good, cut):
    broken(Batch(*map(cut, good)), r"expected tokens as int32 \[.*\], found int32 \[.*\]")


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_one_random_change_at_a_supervised_place_is_refused(make_stream, data):
    lengths = data.draw(st.lists(st.integers(2, 30), min_size=2, max_size=8))
    context = data.draw(st.integers(2, 24))
    stream = make_stream(lengths, seed=data.draw(st.integers(0, 3)))
    made = rows_of(stream, np.arange(stream.rows(context)), context)
    name = data.draw(st.sampled_from(["tokens", "labels", "segments", "positions"]))
    mask = made.loss_mask.copy()
    # A token is a label's witness where the one before it is supervised, a label has one where another token follows.
    if name == "tokens":
        mask &= np.pad(made.loss_mask, ((0, 0), (1, 0)))[:, :-1]
    if name == "labels":
        mask[:, -1] = False
    places = np.argwhere(mask)
    assume(len(places))
    row, at = data.draw(st.sampled_from(places.tolist()))
    value = data.draw(st.one_of(st.integers(-3, 110), st.integers(-(2**31), 2**31 - 1)))
    assume(value != getattr(made, name)[row, at])
    broken(spoiled(made, name, row, at, value), "is broken at step 7", context_length=context)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_label_that_crosses_documents_or_is_padding_is_refused(make_stream, data):
    lengths = data.draw(st.lists(st.integers(2, 10), min_size=2, max_size=8))
    context = data.draw(st.integers(2, 24))
    stream = make_stream(lengths)
    made = rows_of(stream, np.arange(stream.rows(context)), context)
    places = np.argwhere(~made.loss_mask[:, :-1])
    assume(len(places))
    row, at = data.draw(st.sampled_from(places.tolist()))
    broken(spoiled(made, "loss_mask", row, at, True), rf"at row {row}, position {at} \(1 places\)", context_length=context)


# ---- where documents begin, by the tokens ------------------------------------------------------------------------------

MARK = 99  # opens and closes documents


@pytest.fixture(scope="module")
def marked(make_stream):
    """As `good`, with BOS and EOS where documents begin and end."""
    made = rows_of(make_stream([7, 12, 20, 5]), np.array([0, 1, 2, -1]), T)
    tokens = np.minimum(made.tokens, 90)
    flat_first = np.concatenate([[0], np.cumsum([7, 12, 20, 5])])
    for row in range(3):
        at = row * T + np.arange(T)
        tokens[row, np.isin(at, flat_first[:-1]) | np.isin(at + 1, flat_first[1:])] = MARK
    tokens[made.segments == 0] = 0
    labels = np.where(made.loss_mask, np.concatenate([tokens[:, 1:], np.full((4, 1), MARK, np.int32)], axis=1), made.labels)
    return made._replace(tokens=tokens, labels=labels.astype(np.int32))


def test_documents_that_begin_where_the_marks_stand_are_kept(marked):
    check(marked, borders=(MARK, MARK))


def test_a_row_that_says_it_is_one_document_is_refused_by_its_marks(marked):
    t = np.broadcast_to(np.arange(T, dtype=np.int32), (4, T)).copy()
    padding = marked.segments == 0
    one = marked._replace(segments=np.where(padding, 0, 1).astype(np.int32), positions=np.where(padding, 0, t).astype(np.int32))
    check(one)
    broken(one, "a document that begins where EOS and BOS stand, and only there", borders=(MARK, MARK))


def test_a_border_without_its_marks_is_refused(marked):
    tokens = marked.tokens.copy()
    tokens[0, 7] = 5
    broken(marked._replace(tokens=tokens), "where EOS and BOS stand, and only there, found 5 at row 0", borders=(MARK, MARK))


# ---- what is supervised, by the tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [(MARK, MARK), (MARK, MARK - 1)], ids=["one id", "two ids"])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_every_label_that_should_be_is_supervised_and_no_other(marked, mark, row):
    eos, bos = mark
    begins = (marked.positions == 0) & (marked.tokens == MARK)
    made = marked._replace(tokens=np.where(begins, bos, marked.tokens).astype(np.int32))
    following = np.concatenate([made.tokens[:, 1:], made.labels[:, -1:]], axis=1)
    made = made._replace(labels=np.where(made.loss_mask, following, made.labels).astype(np.int32))
    check(made, borders=(eos, bos))
    for at in range(T):
        other = spoiled(made, "loss_mask", row, at, not made.loss_mask[row, at])
        broken(other, "is broken", borders=(eos, bos))


def test_labels_left_out_by_a_rule_of_their_own_are_refused(marked):
    fewer = marked._replace(loss_mask=marked.loss_mask & (np.arange(T) % 4 != 0)[None, :])
    check(fewer)
    broken(fewer, "every label supervised that belongs to the document of its input, found False", borders=(MARK, MARK))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_honest_row_is_refused_by_its_marks(data):
    """Documents of every length, cut anywhere; borders of one id and of two."""
    lengths = data.draw(st.lists(st.integers(3, 20), min_size=1, max_size=12))
    eos, bos = data.draw(st.sampled_from([(99, 99), (99, 98)]))
    context = data.draw(st.integers(2, 33))
    ids = np.concatenate([[bos, *range(10, 10 + length - 2), eos] for length in lengths]).astype("<u2")
    starts = np.cumsum([0, *lengths])
    stream = TokenStream((ids,), np.zeros(1, np.int64), starts)
    made = rows_of(stream, np.array([*range(stream.rows(context)), -1]), context)
    check(made, context_length=context, borders=(eos, bos))
