"""Every known text of every dialect cuts as the pattern that it is said to mean, in the library of its dialect."""

from __future__ import annotations

import functools
import random

import pytest
import tiktoken
from tokenizers import Regex, pre_tokenizers

from jaxlm.interop.patterns import FANCY, ONIGURUMA, meaning
from jaxlm.tokenizer.pretoken import PATTERNS, split

PARTS = [
    "a",
    "S",
    "s",
    "ſ",
    "'",
    "ll",
    "LL",
    "K",
    "ß",
    "ŉ",
    "ﬆ",
    "é",
    "e\u0301",
    "\u0301",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u00a0",
]
PARTS += [
    "\u2028",
    "\x85",
    "\x1c",
    "\u180e",
    "\u200b",
    "1",
    "23",
    "4567",
    "²",
    "Ⅷ",
    ".",
    "!?",
    "/",
    "//",
    "你",
    "ǅ",
    "ʰ",
    "\u200d",
    "_",
]
PARTS += ["\U0001f600", "\u1c89", "\u088f", "\ufeff", "'s", "'RE", "'ve", "\u0558"]


@functools.cache
def samples() -> tuple[str, ...]:
    """Texts of all sorts, and every code point but those of blocks of letters alone, after a letter and a space."""
    draw = random.Random(0)
    mixed = ["".join(draw.choices(PARTS, k=draw.randint(0, 14))) for _ in range(1500)]
    blocks = ((0, 0x3400), (0xA000, 0xAC00), (0xD7A0, 0xD800), (0xF900, 0x17000), (0x18A00, 0x20000), (0xE0000, 0xE0200))
    points = [chr(code) for first, end in blocks for code in range(first, end)]
    whole = ["".join(f"a{c} {c}" for c in points[at : at + 1000]) for at in range(0, len(points), 1000)]
    return (*mixed, *whole, *("'s \n a1" + space * 2 for space in " \n\r\t"))


@functools.cache
def wanted(name: str) -> tuple[list[str], ...]:
    return tuple(split(text, name) for text in samples())


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ONIGURUMA.items() for text in texts])
def test_texts_in_oniguruma_cut_as_their_pattern(name, text):
    isolated = pre_tokenizers.Split(Regex(text), "isolated", invert=False)
    removed = pre_tokenizers.Split(Regex(text), "removed", invert=True)
    for at, (sample, pieces) in enumerate(zip(samples(), wanted(name), strict=True)):
        assert [piece for piece, _ in isolated.pre_tokenize_str(sample)] == pieces
        if at % 10 == 0:
            assert [piece for piece, _ in removed.pre_tokenize_str(sample)] == pieces


def test_byte_level_of_tokenizers_cuts_as_gpt2():
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for sample, pieces in zip(samples(), wanted("gpt2"), strict=True):
        assert [sample[a:b] for _, (a, b) in level.pre_tokenize_str(sample)] == pieces


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FANCY.items() for text in texts])
def test_texts_in_fancy_regex_cut_as_their_pattern(name, text):
    # tiktoken looks a whole pre-token up first: with all of them in the vocabulary, each gives one id.
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pieces in wanted(name):
        for piece in pieces:
            ranks.setdefault(piece.encode(), len(ranks))
    encoding = tiktoken.Encoding("pieces", pat_str=text, mergeable_ranks=ranks, special_tokens={})
    for sample, pieces in zip(samples(), wanted(name), strict=True):
        assert encoding.encode_ordinary(sample) == [ranks[piece.encode()] for piece in pieces]


def test_a_text_means_one_pattern_in_its_dialect_alone():
    for dialect in (ONIGURUMA, FANCY):
        assert set(dialect) == set(PATTERNS)
        texts = [text for known in dialect.values() for text in known]
        assert len(set(texts)) == len(texts)
        assert all(meaning(text, dialect) == name for name, known in dialect.items() for text in known)
    assert meaning(FANCY["cl100k_base"][0], ONIGURUMA) is None  # there `$` is the end of a line, and `{1,3}+` repeats
    assert meaning(ONIGURUMA["cl100k_base"][0], FANCY) is None
    assert meaning(r"\s+", FANCY) is meaning("", ONIGURUMA) is None


def test_the_same_text_in_the_other_dialect_cuts_otherwise():
    for text, sample in zip(FANCY["cl100k_base"], ("12345678", "  \n \na"), strict=True):
        misread = pre_tokenizers.Split(Regex(text), "isolated", invert=False)
        assert [piece for piece, _ in misread.pre_tokenize_str(sample)] != split(sample, "cl100k_base")


def test_texts_are_those_that_tiktoken_has():
    from tiktoken_ext import openai_public

    source = openai_public.__loader__.get_source("tiktoken_ext.openai_public")
    for name in ("gpt2", "cl100k_base"):
        assert any(text in source for text in FANCY[name])
    assert all(part in source for part in FANCY["o200k"][0].split("|[^")[:1])
