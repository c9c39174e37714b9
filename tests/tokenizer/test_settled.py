"""Final tokens of a pre-token that goes on, against merging it with what follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.merging import merge
from jaxlm.tokenizer.settled import LEAST, Settled
from jaxlm.tokenizer.vocabulary import Vocabulary


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Merges of three letters that build on each other, some of which make what an earlier one makes of other parts."""
    parts, found = [b"a", b"b", b"c"], []
    for _ in range(draw(st.integers(0, 20))):
        pair = draw(st.tuples(*[st.integers(1, 8)] * 2).map(lambda p: tuple(parts[-min(n, len(parts))] for n in p)))
        if pair not in found and len(pair[0] + pair[1]) <= 16:
            found.append(pair)
            if pair[0] + pair[1] not in parts:
                parts.append(pair[0] + pair[1])
    return Vocabulary.of(found, ())


def settled(vocabulary: Vocabulary) -> Settled:
    return Settled(vocabulary, lambda texts: [np.array(merge(list(text), vocabulary.product), np.int32) for text in texts])


blocks = st.lists(st.tuples(st.text("abc", min_size=1, max_size=4), st.integers(1, 60)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(vocabularies(), blocks, st.lists(st.text("abc", max_size=20), min_size=1, max_size=4))
def test_final_tokens_stay_whatever_follows(vocabulary, blocks, followers):
    read = "".join(text * times for text, times in blocks).encode()
    found = settled(vocabulary)
    tokens, size = found.tokens(read)
    assert b"".join(vocabulary.tokens[token] for token in tokens) == read[:size]
    assert size <= max(0, len(read) - max(LEAST, found.longest))
    for follower in ("", *followers):
        assert merge(list(read + follower.encode()), vocabulary.product)[: len(tokens)] == tokens.tolist()


@pytest.mark.parametrize("text", ["a", "ab", "abcab", "aab"])
def test_all_but_a_few_tokens_are_final(text):
    merges = [(b"a", b"a"), (b"a", b"b"), (b"ab", b"ab"), (b"c", b"ab"), (b"aa", b"aa"), (b"aa", b"b")]
    read = (text * 400).encode()[:400]
    _, size = settled(Vocabulary.of(merges, ())).tokens(read)
    assert 400 - 2 * LEAST < size <= 400 - LEAST


def test_a_token_longer_than_what_is_always_kept_may_still_come():
    merges = [(b"a" * 2**n, b"a" * 2**n) for n in range(8)] + [(b"a" * 256, b"b")]
    vocabulary, read = Vocabulary.of(merges, ()), b"a" * 1000
    tokens, size = settled(vocabulary).tokens(read)
    assert size == 512
    for follower in (b"", b"b", b"a" * 24, b"a" * 24 + b"b"):
        assert merge(list(read + follower), vocabulary.product)[: len(tokens)] == tokens.tolist()


def test_a_long_wait_for_a_merge_is_waited_for():
    """Every merge waits for the one on its right: `b` at the end changes the tokens of all before it."""
    letters = [bytes([65 + i]) for i in range(50)]
    merges = [(letters[i], letters[i + 1]) for i in range(48, -1, -1)]
    vocabulary, read = Vocabulary.of(merges, ()), b"".join(letters[:49])
    assert merge(list(read), vocabulary.product)[0] != merge([*read, letters[49][0]], vocabulary.product)[0]
    assert settled(vocabulary).tokens(read)[1] == 0
    assert settled(vocabulary).tokens(b"." * 100 + read)[1] > 60
