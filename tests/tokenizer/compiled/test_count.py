"""Counting compiled, against the definition of the patterns and a dictionary."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled.count import CountTable
from jaxlm.tokenizer.pretoken import PATTERNS, split

quick = settings(max_examples=200, deadline=None)


def expected(texts: list[str], pattern: str) -> Counter[bytes]:
    return Counter(word.encode() for text in texts for word in split(text, pattern))


def table_of(texts: list[str], pattern: str, **sizes: int) -> CountTable:
    table = CountTable(pattern, **sizes)
    table.add([text.encode() for text in texts])
    return table


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_counts_of_real_texts(pattern, stdlib_texts):
    assert table_of(stdlib_texts, pattern).counts().counter() == expected(stdlib_texts, pattern)


pieces = st.sampled_from(
    ["a", "b" * 7, "c" * 8, "d" * 9, "e" * 15, "f" * 16, "g" * 17, "h" * 40, "é", "日本", " ", "\n", "\0", "!", "1"]
)
texts = st.lists(st.one_of(st.lists(pieces).map("".join), st.text(max_size=10)), max_size=8)


@quick
@given(texts=texts, pattern=st.sampled_from(list(PATTERNS)))
def test_counts_of_any_texts_in_a_table_that_has_to_grow(texts, pattern):
    table = table_of(texts, pattern, rows=2, long=1)
    counts = expected(texts, pattern)
    assert table.counts().counter() == counts
    assert len(table) == len(counts)


@quick
@given(one=texts, other=texts)
def test_tables_together_count_what_their_texts_hold(one, other):
    table = table_of(one, "gpt2", rows=2, long=1)
    table.merge(table_of(other, "gpt2"))
    assert table.counts().counter() == expected(one + other, "gpt2")


def test_every_text_ends_for_itself():
    """White space at the end of a text is one pre-token, wherever the next text goes on."""
    assert table_of(["a  ", "b", "", "'", "ll"], "gpt2").counts().counter() == {b"a": 1, b"  ": 1, b"b": 1, b"'": 1, b"ll": 1}


def test_a_byte_above_all_of_utf8_separates():
    table = CountTable("gpt2")
    table.add([b"ab\xffcd  \xff\xff  e", b"\xff"])
    assert table.counts().counter() == {b"ab": 1, b"cd": 1, b"  ": 1, b" ": 1, b" e": 1}


def test_lengths_tell_apart_what_zeros_pad():
    words = ["!", "!\0", "!\0\0", "\0", "\0\0", "!" * 16, "!" * 16 + "\0", "!" * 17]
    assert table_of(words, "gpt2").counts().counter() == expected(words, "gpt2")


def test_long_pretokens_are_compared_by_their_bytes_not_their_hash():
    table = table_of(["x" * 50], "gpt2")
    table._long[20] ^= 1  # now other bytes stand under the hash
    table.add([b"x" * 50])
    assert sorted(table.counts().counter().values()) == [1, 1]


def test_memory_follows_what_is_different_not_what_there_is():
    table = CountTable("gpt2")
    sizes = set()
    for seed in range(20):
        table.add([" ".join(random.Random(seed).choices(["one", "two", "internationalisation"], k=2000)).encode()])
        sizes.add((len(table._rows), len(table._long)))
    assert len(sizes) == 1
