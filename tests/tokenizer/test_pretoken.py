"""Pre-tokens, against the library `tokenizers` with the published patterns; cuts, against splitting the whole."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from jaxlm.tokenizer import pretoken
from jaxlm.tokenizer.pretoken import PATTERNS, last_cut, pieces, special_pattern, split
from jaxlm.tokenizer.unicode import represent

# What patterns and cuts turn on: letters that contractions need, numbers of several kinds, spaces and line ends of every kind,
# marks, joiners, letters that came after Unicode 16.0, and halves of special tokens.
PARTS = [
    *"asStTlLvVrReEmMdDZéÉǅʰſʼ/'’ \t\n\r_-.12",
    "²",
    "Ⅷ",
    "٣",
    "e\u0301",
    "\x0b",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u3000",
]
PARTS += [
    "'s",
    "'ll",
    "'LL",
    " '",
    "\r\n",
    "  ",
    "\n\n",
    "你",
    "\u0558",
    "\U00010940",
    "\U0001f600",
    "\u200d",
    "\ufeff",
    "\x00",
]
SPECIALS = ("<|a|>", "<|a|><|b|>", "< a >", "11")
ordinary = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)
special = st.lists(st.sampled_from([*PARTS, *SPECIALS, "<|a|", "<|", "|>", "< a"]), max_size=30).map("".join)


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def oracle(request, published):
    pattern = published[request.param]
    if request.param == "cl100k_base":  # in Oniguruma {1,3}+ repeats, and $ is the end of a line
        pattern = published["cl100k"].replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+")
    return request.param, Split(Regex(pattern), behavior="isolated")


@settings(max_examples=500, deadline=None)
@given(text=st.one_of(ordinary, st.text()))
def test_pretokens_are_those_of_tokenizers(oracle, text):
    name, library = oracle
    found = split(text, name)
    assert found == [piece for piece, _ in library.pre_tokenize_str(text)]
    assert "".join(found) == text


def chunked(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def split_with_specials(texts: list[str], pattern: str) -> list[str]:
    found = []
    for text in texts:
        at = 0
        for match in special_pattern(SPECIALS).finditer(text):
            found += [*split(text[at : match.start()], pattern), f"special {match[0]}"]
            at = match.end()
        found += split(text[at:], pattern)
    return found


@settings(max_examples=400, deadline=None)
@given(
    text=special,
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
    size=st.integers(1, 8),
    pattern=st.sampled_from(sorted(PATTERNS)),
)
def test_pieces_split_as_the_whole_however_it_is_chunked(text, cuts, size, pattern):
    reach, finder = max(map(len, SPECIALS)), special_pattern(SPECIALS)
    found = list(pieces(chunked(text, cuts), size=size, place=lambda text: last_cut(text, len(text) - reach, finder)))
    assert "".join(found) == text
    assert all(found)
    assert split_with_specials(found, pattern) == split_with_specials([text], pattern)


# Where text can be cut, as a pattern.
CUT = regex.compile(
    r"(?r)(?<=\p{L})(?=[^\p{L}\p{M}'])|(?<=\p{N})(?=\P{N})|(?<=\P{White_Space})(?=[\p{White_Space}--\r\n])", regex.V1
)


@settings(max_examples=300, deadline=None)
@given(
    text=special,
    repeated=st.sampled_from(PARTS),
    times=st.integers(0, 40),
    end=st.integers(-3, 60),
    window=st.sampled_from([2, 3, 256]),
)
def test_the_last_cut_is_the_last_place_of_the_pattern(text, repeated, times, end, window):
    text, end = text + repeated * times, min(end, len(text) + times)
    found = CUT.search(represent(text), 0, max(end, 0))
    with mock.patch.object(pretoken, "WINDOW", window):
        assert last_cut(text, end, None) == (found.start() if found else 0)


def test_pieces_are_short_where_the_text_can_be_cut():
    words = [f"word{i} " for i in range(2000)]
    for chunks in (words, ["".join(words)]):
        assert max(map(len, pieces(chunks, size=64))) <= 200


def test_searches_for_a_cut_take_linear_time_where_there_is_none(monkeypatch):
    searched = []

    def counting(text, end, finder):
        searched.append(len(text))
        return last_cut(text, end, finder)

    monkeypatch.setattr(pretoken, "last_cut", counting)
    total = 100_000
    assert list(pieces((" " for _ in range(total)), size=10)) == [" " * total]
    assert 0 < sum(searched) < 3 * total


def test_the_longest_special_token_is_found_first():
    assert special_pattern(("<|a|>", "<|a|><|b|>")).findall("<|a|><|b|><|a|>") == ["<|a|><|b|>", "<|a|>"]
    assert special_pattern(()) is None


def test_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match=r"gpt2, cl100k, cl100k_base, o200k, found 'p50k'"):
        split("a", "p50k")
