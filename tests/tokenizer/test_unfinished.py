"""Pre-tokens that are final, against splitting the text with every kind of continuation; contexts, against the whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.pretoken import PATTERNS, split
from jaxlm.tokenizer.unfinished import LOOK, Unfinished

LETTERS = [*"ABÉabséſlv", "中", "ª", "ʰ"]
PARTS = [*LETTERS, "\u0301", "'", "'s", "'LL", "/", ".", "!", " ", "\t", "\u3000", "\n", "\r", "1", "²", "\U0001f600"]
RUNS = [
    ["A"],
    [*"ab"],
    ["A", "É"],
    ["中", "ª"],
    ["\u0301"],
    [*"aB中\u0301"],
    ["."],
    [*".'"],
    [*".\u0301"],
    ["."],
    ["1"],
    [*" \u3000"],
    [*" \n"],
]
repeated = st.tuples(st.sampled_from(PARTS), st.integers(1, 6)).map(lambda part: part[0] * part[1])
texts = st.lists(repeated, min_size=1, max_size=12).map("".join)
more = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
patterns = st.sampled_from(sorted(PATTERNS))


def ends_of(pretokens: list[str]) -> list[int]:
    ends, at = [], 0
    for pretoken in pretokens:
        at += len(pretoken)
        ends.append(at)
    return ends


@example("a" + "\n" * 8 + "  ", "b", "cl100k_base")
@settings(max_examples=500, deadline=None)
@given(texts, more, patterns)
def test_final_pretokens_stay_and_the_next_reaches_what_is_sure(text, more, pattern):
    found = Unfinished.of(text, pattern)
    whole = ends_of(split(text + more, pattern))
    count = len(found.ends)
    assert found.ends.tolist() == whole[:count]
    if found.sure - found.begin > LOOK:
        assert whole[count] >= found.sure


@settings(max_examples=300, deadline=None)
@given(texts, more, patterns)
def test_parts_split_alone_give_the_final_pretokens(text, more, pattern):
    found = Unfinished.of(text, pattern)
    parts = found.parts()
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])][: len(parts)]
    alone = [pretoken for begin, end in parts for pretoken in split(text[begin:end], pattern)]
    assert ends_of(alone) == found.ends.tolist()


@st.composite
def long_pretokens(draw: st.DrawFn) -> str:
    """Texts that begin with a pre-token of more than a few characters, in most patterns."""
    first, middle = (
        draw(st.sampled_from(["", " ", "!", "\u0301", "A", "中"])),
        draw(st.text(draw(st.sampled_from(RUNS)), min_size=8)),
    )
    return first + middle + draw(st.sampled_from(["", "\n\n/\n//", "abc", "'s", "  "]))


@example("." * 12 + "\n" + "/" * 12, 0.6, "!!", "o200k")  # after the line end come line ends and slashes
@example("." * 12 + "\u0301" * 12, 0.52, "!", "o200k")  # a symbol before a mark would be the prefix of a word
@example("a" * 8 + "中" * 8, 0.6, "Ab", "o200k")  # after a small letter a capital begins a word
@example("A" * 8 + "中" * 8, 0.6, "Ab", "o200k")  # before it, it does not
@settings(max_examples=600, deadline=None)
@given(long_pretokens(), st.floats(0, 1), more, patterns)
def test_a_context_stands_for_what_is_dropped(text, part, more, pattern):
    found = Unfinished.of(text, pattern)
    place = found.begin + 1 + int(part * (found.sure - found.begin))
    if place + LOOK >= found.sure:
        return
    whole = [end for end in ends_of(split(text + more, pattern)) if end > place]
    context = found.context(place)
    rest = ends_of(split(context + text[place:] + more, pattern))
    assert [end - len(context) + place for end in rest] == whole


@pytest.mark.parametrize(
    ("pattern", "text", "final"),
    [
        ("gpt2", "one two three", 2),
        ("cl100k", "1234567", 1),
        ("cl100k", "a\n" + " " * 50, 1),  # a line end may follow
        ("gpt2", "a\n" + " " * 50, 1),
        ("o200k", "a中ABCDEF", 1),
        ("o200k", "中ABCDEF", 0),  # a small letter may follow
        ("o200k", "中ABCDEF.a.b", 2),
    ],
)
def test_what_is_final(pattern, text, final):
    assert len(Unfinished.of(text, pattern).ends) == final
