"""What an inspection says, counted again in other ways; and that it sees what does not come back."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.contract import InputError
from jaxlm.tokenizer import Tokenizer, inspection
from jaxlm.tokenizer.inspection import by_group, difference, inspect, measure, tokens_of, unreachable
from jaxlm.tokenizer.samples import SAMPLES

quick = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def foreign() -> Tokenizer:
    """Ids that are no numbers in order, and a token that two merges make."""
    merges = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc"), (b"\xe2", b"\x82")]
    ids = [*range(999, 743, -1), 5, 4, 3, 2]
    return Tokenizer(merges, {"<|end|>": 1, "<|x|>": 2000}, "gpt2", ids=ids)


# ---- tokens ------------------------------------------------------------------------------------------------------


def test_every_id_has_its_bytes_and_the_first_merge_that_makes_it(foreign):
    tokens = tokens_of(foreign)
    assert {number: token.raw for number, token in tokens.items()} == foreign.vocab
    assert tokens[3].raw == b"abc"
    assert (tokens[3].rank, tokens[3].parts) == (2, (b"ab", b"c"))
    assert (tokens[2].rank, tokens[2].parts, tokens[2].raw) == (4, (b"\xe2", b"\x82"), b"\xe2\x82")
    assert [t.id for t in tokens.values() if t.special] == [1, 2000]
    assert [t.rank for t in tokens.values()][:256] == [None] * 256


def test_ranks_are_places_among_the_merges(trained):
    made = [token for token in tokens_of(trained).values() if token.parts]
    assert len(made) == len(trained.merges)
    assert all(trained.merges[token.rank] == token.parts and b"".join(token.parts) == token.raw for token in made)


def drawn_merges(choices):
    """Merges over a and b: each choice joins two of the tokens that there are."""
    pool, merges = [b"a", b"b"], []
    for x, y in choices:
        pair = pool[x % len(pool)], pool[y % len(pool)]
        if pair not in merges and len(b"".join(pair)) <= 6:
            merges.append(pair)
            if b"".join(pair) not in pool:
                pool.append(b"".join(pair))
    return merges


@quick
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=7))
def test_unreachable_are_the_ids_that_no_text_gives(choices):
    tokenizer = Tokenizer(drawn_merges(choices), (), "gpt2", engine="portable")
    seen = set()
    for length in range(1, 8):
        for text in itertools.product("ab", repeat=length):
            seen.update(tokenizer.encode_ordinary("".join(text)))
    assert set(unreachable(tokenizer)) == set(range(256, tokenizer.vocab_size)) - seen


def test_a_token_that_is_never_reached_is_found():
    # In "abc" the pair (a, b) comes first, so that (b, c) is never there to make a + bc.
    assert unreachable(Tokenizer([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")], (), "gpt2")) == [258]


# ---- samples -----------------------------------------------------------------------------------------------------


def test_samples_are_measured_by_their_bytes_and_tokens(trained):
    measured = measure(trained)
    assert [one.sample for one in measured] == list(SAMPLES)
    for one in measured:
        assert one.tokens == len(trained.encode_ordinary(one.sample.text))
        assert one.bytes_per_token == len(one.sample.text.encode()) / one.tokens
    english = next(one for one in measured if one.sample.name == "English")
    assert english.against_english == 1.0
    german = next(one for one in measured if one.sample.name == "German")
    assert german.against_english == german.tokens / english.tokens
    assert all(one.against_english == 0 for one in measured if one.sample.kind != "language")


def test_groups_weigh_samples_by_their_tokens(trained):
    measured = measure(trained)
    kinds = by_group(measured, "kind")
    code = [one for one in measured if one.sample.kind == "code"]
    assert kinds["code"] == sum(one.bytes for one in code) / sum(one.tokens for one in code)
    assert list(kinds) == ["language", "code", "emoji", "numbers", "maths", "white space"]
    assert list(by_group(measured, "script"))[:2] == ["Latin", "Greek"]
    assert "" not in by_group(measured, "script")


# ---- all of it ---------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_data(trained, stdlib_texts):
    documents = stdlib_texts[:20]
    found = inspect(trained, "def f(x):\n", documents=iter(documents))
    counted = Counter(i for text in documents for i in trained.encode_ordinary(text))
    assert {i: n for i, n in enumerate(found.counts.tolist()) if n} == dict(counted)
    assert (found.documents, found.data_bytes) == (20, sum(len(text.encode()) for text in documents))
    specials = set(trained.special_ids.values())
    assert found.never == [i for i in range(256, trained.vocab_size) if i not in counted and i not in specials]
    assert found.never_bytes == sum(i not in counted for i in range(256))
    assert found.ids.tolist() == trained.encode_ordinary("def f(x):\n")
    again = inspect(trained, "x", id_counts=found.counts)
    assert (again.never, again.documents) == (found.never, 0)
    both = inspect(trained, "x", documents=documents, id_counts=found.counts)
    assert np.array_equal(both.counts, 2 * found.counts)


def test_without_data_nothing_is_said_of_it(trained):
    found = inspect(trained, "text")
    assert (found.counts, found.never, found.never_bytes) == (None, None, 0)


def test_a_training_text_that_is_empty_never_has_any_token(foreign):
    assert inspect(foreign, "", documents=[]).never == [5, 4, 3, 2]


def test_lists_are_of_all_tokens_but_the_special_ones(trained):
    found = inspect(trained, "text")
    ordinary = {i: raw for i, raw in trained.vocab.items() if i not in trained.special_ids.values()}
    assert sorted(found.longest) == sorted(ordinary)
    lengths = [len(ordinary[i]) for i in found.longest]
    assert lengths == sorted(lengths, reverse=True)
    assert found.not_utf8 == [i for i, raw in ordinary.items() if raw.decode(errors="replace").encode() != raw]
    assert set(range(128, 256)) <= set(found.not_utf8)


def test_special_tokens_of_the_text_stand_for_their_ids_where_that_is_allowed(foreign):
    assert inspect(foreign, "<|x|>a").ids.tolist() == foreign.encode_ordinary("<|x|>a")
    found = inspect(foreign, "<|x|>a", allow_special=True)
    assert found.ids.tolist() == [2000, 999 - ord("a")]
    assert found.failures == []


def test_a_lone_surrogate_is_a_mistake_of_the_user(foreign):
    with pytest.raises(InputError, match="lone surrogate"):
        inspect(foreign, "a\ud800")


# ---- round trips -------------------------------------------------------------------------------------------------


def test_everything_comes_back(trained, stdlib_texts):
    found = inspect(trained, "a <|endoftext|> b\x00\r\n", documents=stdlib_texts[:5], allow_special=True)
    assert found.failures == []
    assert found.checked == {"ids": trained.vocab_size, "texts": 1 + 5 + len(SAMPLES) + 2}


def test_a_decoder_that_errs_is_seen(foreign, monkeypatch):
    right = Tokenizer.decode_bytes
    monkeypatch.setattr(Tokenizer, "decode_bytes", lambda self, ids: right(self, ids).replace(b"c", b"k"))
    found = inspect(foreign, "xabc", documents=["no", "cut"])
    places = {failure.where: failure for failure in found.failures}
    assert {"the text", "document 2 of the data", "id 3", f"id {999 - ord('c')}", "the probe text"} <= set(places)
    assert {"document 1 of the data", "id 5"}.isdisjoint(places)
    assert (places["the text"].at, places["the text"].expected, places["the text"].found) == (3, b"c", b"k")


def test_an_encoder_that_errs_is_seen_and_not_all_failures_are_kept(foreign, monkeypatch):
    right = Tokenizer.encode_to_numpy
    monkeypatch.setattr(Tokenizer, "encode_to_numpy", lambda self, *rest: right(self, *rest)[:-1])
    found = inspect(foreign, "ab c", documents=["text"] * 50, kept_failures=10)
    assert len(found.failures) == 10
    assert (found.failures[0].where, found.failures[0].at, found.failures[0].found) == ("the text", 3, b"")


@quick
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_difference_begins_at_the_first_byte_that_differs(a, b):
    failure = difference("here", a, b)
    if a == b:
        assert failure is None
    else:
        assert a[: failure.at] == b[: failure.at]
        assert a[failure.at : failure.at + 1] != b[failure.at : failure.at + 1]
        assert (failure.expected, failure.found) == (a[failure.at :][:16], b[failure.at :][:16])


def test_the_probe_and_every_sample_are_tried(foreign, monkeypatch):
    tried = []
    right = inspection.encoded

    def noted(tokenizer, text, where, allowed=None):
        tried.append(where)
        return right(tokenizer, text, where, allowed)

    monkeypatch.setattr(inspection, "encoded", noted)
    inspect(foreign, "x")
    assert len(tried) == len(set(tried)) == len(SAMPLES) + 3
