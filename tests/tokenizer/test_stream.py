"""Ids to text one at a time: together the text of all, each piece as early as it is certain, never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import StreamDecoder, Tokenizer


def pieces_of(tok: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tok)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@settings(max_examples=400, deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(0, 1499), st.integers(128, 255), st.sampled_from([0xED, 0xA0, 0xF0, 0x9F, 0xF4, 0xC0])))
)
def test_pieces_of_any_ids_make_the_decoded_text(trained, ids):
    assert "".join(pieces_of(trained, ids)) == trained.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_no_piece_of_a_text_has_half_a_character(small, text):
    ids = list(text.encode())  # every byte an id of its own: the worst case
    pieces = pieces_of(small, ids)
    assert "".join(pieces) == text
    done = 0
    for at, piece in enumerate(pieces[:-1]):
        assert len(piece) <= 1
        done += len(piece.encode())
        complete = text.encode()[: at + 1].decode(errors="ignore")
        assert done == len(complete.encode())  # as early as it can be
    assert pieces[-1] == ""


def test_flush_shows_what_stayed_incomplete_and_starts_afresh(small):
    decoder = StreamDecoder(small)
    assert [decoder.push(i) for i in (0xF0, 0x9F, 0x98)] == ["", "", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.push(97) == "a"


def test_special_tokens_are_their_text_and_end_a_half_character(small):
    decoder = StreamDecoder(small)
    assert decoder.push(0xE4) == ""
    assert decoder.push(small.special_ids["<|a|>"]) == "\ufffd<|a|>"


def test_what_is_no_id_is_refused(small):
    with pytest.raises(ValueError, match=r"expected ids in 0\.\."):
        StreamDecoder(small).push(small.vocab_size)
