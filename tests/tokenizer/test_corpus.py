"""Texts and files as pieces: no pre-token changes wherever they are cut, nothing is lost, little is held."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.contract import InputError
from jaxlm.tokenizer.corpus import Corpus
from jaxlm.tokenizer.pretoken import PATTERNS, special_pattern, split

quick = settings(max_examples=200, deadline=None)
SPECIALS = ("<s>", "<s><t>", "s> <", "aba")
texts = st.lists(
    st.sampled_from([*SPECIALS, "<", "s", ">", " ", "  ", "\n", "\r\n", "a", "ab", "'", "ll", "12", "é", "日本", "!"])
).map("".join)


def pretokens(pieces: list[str], pattern: str) -> Counter[str]:
    finder = special_pattern(SPECIALS)
    return Counter(word for piece in pieces for part in finder.split(piece) for word in split(part, pattern))


@quick
@given(text=texts, block=st.integers(1, 12), pattern=st.sampled_from(list(PATTERNS)))
def test_pieces_have_the_pretokens_of_the_whole(text, block, pattern):
    corpus = Corpus(SPECIALS, block=block)
    pieces = [piece.decode() for piece in corpus.of_texts([text])]
    assert "".join(pieces) == text
    assert pretokens(pieces, pattern) == pretokens([text], pattern)
    assert (corpus.documents, corpus.bytes) == (1, len(text.encode()))


@quick
@given(text=texts, block=st.integers(1, 12))
def test_pieces_of_a_file_are_those_of_its_text(text, block, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_bytes(text.encode())
    corpus = Corpus(SPECIALS, block=block)
    pieces = [piece.decode() for piece in corpus.of_files([path])]
    assert "".join(pieces) == text
    assert pretokens(pieces, "gpt2") == pretokens([text], "gpt2")
    assert (corpus.documents, corpus.bytes) == (1, len(text.encode()))


def test_a_long_text_is_cut_after_special_tokens_where_it_has_any():
    corpus = Corpus(("<s>",), block=16)
    assert list(corpus.of_texts(["one two<s>three four<s>five six seven eight nine"])) == [
        b"one two<s>",
        b"three four<s>",
        b"five six seven eight nine",
    ]
    assert list(corpus.of_texts(["one two three four five"])) == [b"one two", b" three four five"]


def test_what_has_no_place_to_cut_is_kept_together():
    assert list(Corpus((), block=4).of_texts(["a" * 100])) == [b"a" * 100]


@quick
@given(text=texts, limit=st.integers(1, 30), block=st.integers(1, 12))
def test_max_bytes_takes_as_much_of_a_file_as_of_a_text(text, limit, block, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "limit.txt"
    path.write_bytes(text.encode())
    of_text, of_file = Corpus((), max_bytes=limit), Corpus((), max_bytes=limit, block=block)
    assert b"".join(of_file.of_files([path, path])) == b"".join(of_text.of_texts([text, text]))
    assert of_file.bytes == of_text.bytes <= limit
    assert of_file.documents == of_text.documents


def test_line_ends_and_marks_of_a_file_survive(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\rthree\n".encode())
    assert b"".join(Corpus(()).of_files([path])) == path.read_bytes()


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 1000])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("日本".encode() + b"\xff.", "0xFF at byte 6 .invalid start byte"),
        ("日 ".encode() + b"\xe6\x97 more", "0xE6 at byte 4 .invalid continuation byte"),
        ("日 ".encode() + b"\xe6\x97", "0xE6 at byte 4 .unexpected end of data"),
        (b"ab\xed\xa0\x80", "0xED at byte 2"),  # a surrogate
    ],
)
def test_a_file_that_is_not_utf8_is_refused_with_the_place(raw, message, block, tmp_path):
    path: Path = tmp_path / "bad.txt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=rf"bad.txt: expected UTF-8, found the byte {message}"):
        list(Corpus((), block=block).of_files([path]))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"missing.txt: expected a text file, found: No such file"):
        list(Corpus(()).of_files([tmp_path / "missing.txt"]))
    with pytest.raises(InputError, match="expected a text file, found: Is a directory"):
        list(Corpus(()).of_files([tmp_path]))


def test_what_is_no_text_is_refused_with_the_place():
    with pytest.raises(TypeError, match="iterable of str, found bytes"):
        list(Corpus(()).of_texts([b"raw"]))
    for block in (4, 100):
        with pytest.raises(InputError, match=r"U\+D800 at character 12 of text 1"):
            list(Corpus((), block=block).of_texts(["fine", "one two thre\ud800 four"]))


def test_texts_are_read_when_they_are_needed():
    read = []

    def texts():
        for i in range(3):
            read.append(i)
            yield "some text"

    pieces = Corpus(()).of_texts(texts())
    assert read == []
    next(pieces)
    assert read == [0]
