"""Classes are those of Unicode 16.0, which is what tiktoken's are, at every code point."""

from __future__ import annotations

import numpy as np
import pytest
import regex
import tiktoken

from jaxlm.tokenizer import unicode
from jaxlm.tokenizer.unicode import classes, represent

EVERY = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
BYTES = {bytes([i]): i for i in range(256)}
NAMES = {
    unicode.UPPER: r"[\p{Lu}\p{Lt}]",
    unicode.LOWER: r"\p{Ll}",
    unicode.CASELESS: r"[\p{Lm}\p{Lo}]",
    unicode.MARK: r"\p{M}",
    unicode.NUMBER: r"\p{N}",
    unicode.SPACE: r"[\s&&[^\r\n]]",
    unicode.NEWLINE: r"[\r\n]",
}


@pytest.mark.parametrize("number", NAMES)
def test_classes_of_every_code_point_are_those_of_tiktoken(number):
    matching = tiktoken.Encoding("class", pat_str=NAMES[number], mergeable_ranks=BYTES, special_tokens={})
    expected = {ord(c) for c in matching.decode(matching.encode_ordinary(EVERY))}
    assert len(expected) > 1
    assert [hex(c) for c in expected ^ set(np.flatnonzero(classes() == number).tolist())] == []


@pytest.mark.parametrize("number", NAMES)
def test_the_regex_module_finds_the_classes_in_what_stands_for_the_text(number):
    name = NAMES[number].replace(r"[\s&&[^\r\n]]", r"[\p{White_Space}--[\r\n]]")
    found = {ord(EVERY[match.start()]) for match in regex.finditer(name, represent(EVERY), regex.V1)}
    assert found == set(np.flatnonzero(classes() == number).tolist())


def test_ascii_and_the_long_s_stand_for_themselves():
    text = "".join(map(chr, range(128))) + "\u017f"
    assert represent(text) == text
    assert represent("plain") is not None
    assert len(represent(EVERY)) == len(EVERY)
    assert represent("aé\u0558\ud800b") == "aa!!b"


def test_the_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        classes()[0] = 1
