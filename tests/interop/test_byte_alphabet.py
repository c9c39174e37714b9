"""GPT-2's characters for bytes, against those of `tokenizers`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from jaxlm.interop.byte_alphabet import CHARACTERS, read, written


def test_the_characters_are_those_of_tokenizers():
    assert sorted(CHARACTERS) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(CHARACTERS)) == 256
    assert (CHARACTERS[ord(" ")], CHARACTERS[ord("\n")], CHARACTERS[ord("a")], CHARACTERS[0xAD]) == ("Ġ", "Ċ", "a", "Ń")


@given(text=st.text())
def test_texts_are_written_as_tokenizers_writes_them(text):
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert written(text.encode()) == "".join(piece for piece, _ in pieces)


@given(raw=st.binary(min_size=1))
def test_what_is_written_is_read(raw):
    assert read(written(raw)) == raw


def test_what_stands_for_no_bytes_is_told():
    assert read("a b") is read("你") is read("") is read("a\n") is read("\x85") is None
