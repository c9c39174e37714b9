"""Letters and numbers are those of Unicode 16.0, which is what tiktoken's classes are, at every code point."""

from __future__ import annotations

import pytest
import regex
import tiktoken

from jaxlm.tokenizer.unicode import MASK, mask_later

EVERY = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
BYTES = {bytes([i]): i for i in range(256)}


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\s"])
def test_classes_of_every_code_point_are_those_of_tiktoken(name):
    matching = tiktoken.Encoding("class", pat_str=name, mergeable_ranks=BYTES, special_tokens={})
    expected = matching.decode(matching.encode_ordinary(EVERY))
    ours = name.replace(r"\s", r"\p{White_Space}")
    masked = mask_later(EVERY)
    found = "".join(EVERY[match.start()] for match in regex.finditer(ours, masked, regex.V1))
    assert len(expected) > 20
    assert [hex(ord(c)) for c in set(found) ^ set(expected)] == []


def test_mask_keeps_length_and_all_but_later_letters():
    masked = mask_later(EVERY)
    assert len(masked) == len(EVERY)
    changed = [c for c, m in zip(EVERY, masked, strict=True) if c != m]
    assert all(m == MASK for c, m in zip(EVERY, masked, strict=True) if c != m)
    assert "\u0558" in changed
    assert "\U00010940" in changed


def test_mask_returns_what_needs_none_itself():
    for text in ("plain", "é", "你好", "\U0001f600"):
        assert mask_later(text) is text
    assert mask_later("a\u0558b") == "a\uffffb"
    assert mask_later("a\u0558\U00010940b") == "a\uffff\uffffb"
