"""Scanned pre-tokens are those of the patterns: over fuzz, and over every code point in three places."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled import scan
from jaxlm.tokenizer.compiled.jit import compiled
from jaxlm.tokenizer.compiled.memory import store_i64
from jaxlm.tokenizer.compiled.scan import pretoken_end
from jaxlm.tokenizer.pretoken import PATTERNS, split
from jaxlm.tokenizer.unicode import OTHER, classes

PARTS = [*"asStTlLvVrReEmMdDZéÉǅʰſʼ/'’ \t\n\r_-.12", "²", "Ⅷ", "٣", "e\u0301", "\u0301", "\x0b", "\x1c", "\x85", "\u00a0"]
PARTS += ["\u2028", "\u3000", "'s", "'ll", "'LL", " '", "\r\n", "  ", "\n\n", "你", "ª", "\u0558", "\U00010940", "\U0001f600"]
PARTS += ["\u200d", "\ufeff", "\x00", "'ſ", "\ue000", "\ud7ff", "\U0010ffff"]


@compiled
def pretoken_ends(kind, text, length, table, ends):
    at, count = np.int64(0), np.int64(0)
    while at < length:
        at = pretoken_end(kind, text, table, at)
        store_i64(ends + 8 * count, at)
        count += 1
    return count


def scanned(text: str, pattern: str) -> list[str]:
    raw = text.encode()
    padded = np.frombuffer(raw + b"\xff" * scan.PADDING, np.uint8)
    ends = np.empty(len(raw), np.int64)
    addresses = padded.ctypes.data, len(raw), scan.table().ctypes.data, ends.ctypes.data
    count = pretoken_ends(scan.KINDS[pattern], *addresses)
    return [raw[a:b].decode() for a, b in pairwise([0, *ends[:count].tolist()])]


def test_every_pattern_has_a_scanner():
    assert set(scan.KINDS) == set(PATTERNS)
    assert sorted(scan.KINDS.values()) == list(range(len(PATTERNS)))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.lists(st.sampled_from(PARTS), max_size=20).map("".join), st.text()))
def test_scanned_pretokens_are_those_of_the_pattern(pattern, text):
    assert scanned(text, pattern) == split(text, pattern)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_scanned_pretokens_of_many_random_texts(pattern):
    draw = random.Random(pattern)
    text = [*PARTS]
    for _ in range(3000):
        sample = "".join(draw.choices(text, k=draw.randint(1, 14)))
        assert scanned(sample, pattern) == split(sample, pattern), repr(sample)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("frame", ["{}", "a{}B", " {}1"])
def test_scanned_pretokens_of_every_code_point(pattern, frame):
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # Every one that is a letter, number, mark or space; of the others, which are all alike, one in sixteen above U+3400.
    is_other = classes() == OTHER
    text = "\n".join(frame.format(chr(c)) for c in codes if c < 0x3400 or not is_other[c] or c % 16 == 3)
    assert scanned(text, pattern) == split(text, pattern)
