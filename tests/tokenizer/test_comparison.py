"""Two tokenizers over the same text: against a comparison byte by byte, and by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import Tokenizer, train_tokenizer
from jaxlm.tokenizer.comparison import CONTEXT, borders, compare_definitions, compare_texts, differing

quick = settings(max_examples=200, deadline=None)
LETTERS = [b"a", b"b", "é".encode()[:1], "é".encode()[1:]]


def made(choices, pattern="gpt2", **options):
    """A tokenizer over a, b, é and space whose merges are chosen among what there is."""
    pool, merges = list(LETTERS), []
    for x, y in choices:
        pair = pool[x % len(pool)], pool[y % len(pool)]
        if pair not in merges:
            merges.append(pair)
            pool.append(b"".join(pair))
    return Tokenizer(merges, (), pattern, engine="portable", **options)


choices = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6)
texts = st.lists(st.text("abé 1", max_size=30), max_size=4)


def cuts(tokenizer, text):
    """Offsets at which tokens begin, and the end, by decoding one after the other."""
    found = [0]
    for number in tokenizer.encode_ordinary(text):
        found.append(found[-1] + len(tokenizer.decode_bytes([number])))
    return found


@quick
@given(choices, choices, texts)
def test_differences_are_those_byte_by_byte(choices_a, choices_b, documents):
    a, b = made(choices_a), made(choices_b, "cl100k")
    found = compare_texts(a, b, documents)
    differ = touched = 0
    for text in documents:
        cuts_a, cuts_b = set(cuts(a, text)), set(cuts(b, text))
        both = sorted(cuts_a & cuts_b)
        here = sum(end - begin for begin, end in pairwise(both) if any(begin < c < end for c in cuts_a ^ cuts_b))
        differ, touched = differ + here, touched + bool(here)
    assert (found.split_bytes, found.split_documents) == (differ, touched)
    assert (found.documents, found.bytes) == (len(documents), sum(len(text.encode()) for text in documents))
    assert found.tokens_a == sum(len(a.encode_ordinary(text)) for text in documents)
    assert found.tokens_b == sum(len(b.encode_ordinary(text)) for text in documents)
    assert found.documents_with_other_ids == sum(a.encode_ordinary(t) != b.encode_ordinary(t) for t in documents)


@quick
@given(choices, choices, texts)
def test_stretches_stand_for_the_same_bytes_and_cannot_be_cut(choices_a, choices_b, documents):
    a, b = made(choices_a), made(choices_b)
    found = compare_texts(a, b, documents)
    assert sum(len(a.decode_bytes(ids)) * count for (ids, _), count in found.stretches.items()) == found.split_bytes
    assert found.stretches.keys() == found.examples.keys()
    for ids_a, ids_b in found.stretches:
        raw, example = a.decode_bytes(ids_a), found.examples[ids_a, ids_b]
        assert raw == b.decode_bytes(ids_b)
        inner = [set(np.cumsum([len(owner.vocab[i]) for i in ids])[:-1].tolist()) for owner, ids in ((a, ids_a), (b, ids_b))]
        assert inner[0] & inner[1] == set()
        assert inner[0] | inner[1]
        whole, end = documents[example.document].encode(), example.offset + len(raw)
        assert whole[example.offset : end] == raw
        assert whole[max(0, example.offset - CONTEXT) : example.offset] == example.before
        assert whole[end : end + CONTEXT] == example.after


def test_stretches_are_counted_and_shown_where_they_first_stood():
    a = Tokenizer([(b"a", b"b"), (b"ab", b"c")], ("<|e|>",), "gpt2")
    b = Tokenizer([(b"b", b"c"), (b"a", b"bc")], ("<|e|>",), "gpt2")
    found = compare_texts(a, b, ["x abcd", "ab abc", "nothing", "", "one ab"])
    # "abc" is one token in both, though of other parts; "ab" is a token of A only.
    assert found.stretches == {((256,), (97, 98)): 2}
    example = found.examples[(256,), (97, 98)]
    assert (example.document, example.offset, example.before, example.after) == (1, 0, b"", b" abc")
    assert (found.split_bytes, found.split_documents, found.bytes) == (4, 2, 25)
    assert compare_texts(a, b, []).bytes == 0


def test_ids_of_the_same_split_that_differ_are_another_thing_than_the_split():
    a = Tokenizer([(b"a", b"b")], (), "gpt2")
    b = Tokenizer([(b"a", b"b")], (), "gpt2", ids=[*range(255, -1, -1), 256])
    found = compare_texts(a, b, ["ab", "abx"])
    assert (found.split_bytes, found.documents_with_other_ids, found.stretches) == (0, 1, {})
    differ = compare_definitions(a, b)
    assert (differ.identical, differ.merges_differ_at, differ.only_a, differ.only_b) == (False, None, [], [])
    assert differ.other_id[b"a"] == (97, 158)
    assert len(differ.other_id) == 256


def test_special_tokens_in_texts_are_text():
    a = Tokenizer([], ("<|e|>",), "gpt2")
    assert compare_texts(a, a, ["<|e|>"]).tokens_a == 5


@quick
@given(st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)))
def test_differing_stretches_lie_between_neighbouring_common_borders(inner_a, inner_b):
    a, b = (np.array([0, *sorted(inner), 31]) for inner in (inner_a, inner_b))
    found = list(differing(a, b))
    for first_a, end_a, first_b, end_b in found:
        assert (a[first_a], a[end_a]) == (b[first_b], b[end_b])
        assert set(a[first_a + 1 : end_a]).isdisjoint(b[first_b + 1 : end_b])
    covered = {x for first, end, _, _ in found for x in range(a[first], a[end])}
    alone = {x for x in inner_a ^ inner_b}
    assert alone <= covered
    assert bool(found) == bool(alone)


def test_borders_are_offsets_in_bytes(small):
    ids = small.encode_to_numpy("aaa é ll")
    assert borders(small, ids).tolist() == cuts(small, "aaa é ll")
    assert borders(small, ids[:0]).tolist() == [0]


# ---- definitions -------------------------------------------------------------------------------------------------

BASE = [(b"a", b"b"), (b"ab", b"c"), (b"d", b"e")]


@pytest.mark.parametrize(
    ("other", "rank", "only_a", "only_b", "shared"),
    [
        (BASE, None, [], [], 3),
        (BASE[:2], 2, [b"de"], [], 2),
        ([*BASE, (b"x", b"y")], 3, [], [b"xy"], 3),
        ([BASE[0], BASE[2], BASE[1]], 1, [], [], 3),
        ([(b"b", b"c"), (b"a", b"bc"), BASE[2]], 0, [b"ab"], [b"bc"], 1),
    ],
)
def test_merges_and_tokens_that_differ_are_named(other, rank, only_a, only_b, shared):
    a, b = Tokenizer(BASE, ("<|e|>",), "gpt2"), Tokenizer(other, ("<|e|>",), "gpt2")
    found = compare_definitions(a, b)
    assert (found.merges_differ_at, found.only_a, found.only_b, found.shared_merges) == (rank, only_a, only_b, shared)
    if rank is not None:
        assert found.merge_a == (BASE[rank] if rank < 3 else None)
        assert found.merge_b == (other[rank] if rank < len(other) else None)
    assert found.identical == (other is BASE)


def test_an_order_of_merges_alone_moves_ids():
    a, b = Tokenizer(BASE, (), "gpt2"), Tokenizer([BASE[0], BASE[2], BASE[1]], (), "gpt2")
    assert compare_definitions(a, b).other_id == {b"abc": (257, 258), b"de": (258, 257)}


def test_patterns_and_special_tokens_that_differ_are_named():
    a = Tokenizer(BASE, {"<|e|>": 300, "<|x|>": 301}, "gpt2")
    assert not compare_definitions(a, Tokenizer(BASE, {"<|e|>": 300, "<|x|>": 301}, "o200k")).identical
    found = compare_definitions(a, Tokenizer(BASE, {"<|e|>": 300, "<|y|>": 301}, "gpt2"))
    assert found.special == {"<|x|>": (301, None), "<|y|>": (None, 301)}
    assert (found.identical, found.document_token) == (False, True)
    turned = compare_definitions(a, Tokenizer(BASE, {"<|x|>": 301, "<|e|>": 300}, "gpt2"))
    assert (turned.identical, turned.document_token, turned.special) == (False, False, {})
    none = compare_definitions(a, Tokenizer(BASE, (), "gpt2"))
    assert (none.document_token, set(none.special)) == (False, {"<|e|>", "<|x|>"})


def test_tokenizers_of_real_text_agree_with_a_count_by_decoding(stdlib_texts):
    half = stdlib_texts[: len(stdlib_texts) // 8]
    a, b = train_tokenizer(half, vocab_size=600), train_tokenizer(half, vocab_size=500, pattern="cl100k")
    found = compare_texts(a, b, half[:5])
    expected = 0
    for text in half[:5]:
        cuts_a, cuts_b = set(cuts(a, text)), set(cuts(b, text))
        both = sorted(cuts_a & cuts_b)
        alone = sorted(cuts_a ^ cuts_b)
        at = np.searchsorted(both, alone)
        expected += sum(both[i] - both[i - 1] for i in set(at.tolist()))
    assert 0 < found.split_bytes == expected
