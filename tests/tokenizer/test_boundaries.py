"""Boundary masks, against splitting by the patterns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.boundaries import END, MASKS, boundaries
from jaxlm.tokenizer.pretoken import split
from jaxlm.tokenizer.unicode import CODES, classes, code_points

PARTS = [*"asStTlLvVrReEmMdDZéǅʰſß’'/ \t\n\r_-.129", "²", "Ⅷ", "\x0b", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\u0300"]
PARTS += ["'s", "'ll", "'LL", "'ve", "'rE", " '", "\r\n", "  ", "\n\n", "你", "\u0558", "\U0001f600", "\ud800", "\x00"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS), max_size=30).map("".join))


def mask(text: str, pattern: str) -> np.ndarray:
    codes = code_points(text)
    return boundaries(codes, classes()[codes], pattern)


def expected(text: str, pattern: str) -> np.ndarray:
    begins = np.zeros(len(text), bool)
    begins[np.cumsum([0, *map(len, split(text, pattern))])[:-1]] = True
    return begins


@pytest.mark.parametrize("pattern", MASKS)
@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_masks_are_those_of_the_patterns(pattern, text):
    np.testing.assert_array_equal(mask(text, pattern), expected(text, pattern))


@pytest.mark.parametrize("pattern", MASKS)
def test_masks_of_seeded_texts(pattern):
    """Short texts, so that every neighbourhood also stands at both ends."""
    random = np.random.default_rng(0)
    for count in random.integers(0, 9, 2000):
        text = "".join(random.choice(PARTS, count).tolist())
        assert mask(text, pattern).tolist() == expected(text, pattern).tolist(), text


@pytest.mark.parametrize("pattern", MASKS)
def test_masks_of_all_of_unicode(pattern):
    """Every code point, surrogates included, beside a letter, a blank, a contraction, a number, and itself."""
    for start in range(0, CODES, 1 << 16):
        if start and not (classes()[start : start + (1 << 16)] != 0).any():
            step = 257  # planes without a letter, number or space: some of them
        else:
            step = 1
        text = "".join([f"a{c} {c}'s{c}{c}1" for c in map(chr, range(start, start + (1 << 16), step))])
        np.testing.assert_array_equal(mask(text, pattern), expected(text, pattern))


@pytest.mark.parametrize(
    ("text", "gpt2", "cl100k"),
    [
        ("'s's'll've", "'s|'s|'ll|'ve", "'s|'s|'ll|'ve"),
        ("''s", "''|s", "''|s"),
        ("'ll'", "'ll|'", "'ll|'"),
        ("'l'l", "'|l|'|l", "'l|'l"),
        ("it'stuff", "it|'s|tuff", "it|'s|tuff"),
        (" 's", " '|s", " '|s"),
        ("'S", "'|S", "'S"),
        ("'S'ReX", "'|S|'|ReX", "'S|'Re|X"),
        ("x'ſy", "x|'|ſy", "x|'ſ|y"),
        ("12345", "12345", "123|45"),
        ("a.\n\n b", "a|.|\n\n| b", "a|.\n\n| b"),
        ("a \n \n  b", "a| \n \n | b", "a| \n \n| | b"),
        (".a..a", ".|a|..|a", ".a|..|a"),
    ],
)
def test_worked_examples(text, gpt2, cl100k):
    for pattern, want in (("gpt2", gpt2), ("cl100k", cl100k)):
        starts = np.flatnonzero(mask(text, pattern)).tolist()
        assert "|".join(text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)) == want


@pytest.mark.parametrize("pattern", MASKS)
@settings(max_examples=100, deadline=None)
@given(rows=st.lists(texts, min_size=1, max_size=5))
@example(rows=["a\n  ", "a ", "a \n \n", "'s", "12"])
def test_rows_with_their_ends_are_as_each_alone(pattern, rows):
    width = max(map(len, rows)) + 1
    codes, kinds = np.zeros((len(rows), width), np.uint32), np.full((len(rows), width), END, np.uint8)
    for i, row in enumerate(rows):
        codes[i, : len(row)] = code_points(row)
        kinds[i, : len(row)] = classes()[code_points(row)]
    found = boundaries(codes, kinds, pattern)
    assert found.dtype == bool
    for i, row in enumerate(rows):
        assert found[i].tolist() == [*expected(row, pattern).tolist(), *[False] * (width - len(row))]


def test_a_pattern_without_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"with a mask, gpt2, cl100k, cl100k_base, found 'o200k'"):
        boundaries(np.zeros(1, np.uint8), np.zeros(1, np.uint8), "o200k")
