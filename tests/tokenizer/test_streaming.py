"""Texts in chunks, without places to cut: ids of the whole, in little memory, early, and refused at the right place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import Tokenizer, streaming
from jaxlm.tokenizer import tokenizer as module
from jaxlm.tokenizer.pretoken import PATTERNS

LETTERS = [*"AÉ", *"asſ", "中", "ª", "\u0301"]
KINDS = [LETTERS, ["'", "s", "/"], [" ", "\u3000"], ["\n", "\r"], ["1", "²"], [".", "\U0001f600", "\u200d"]]
SPECIALS = [(), ("<a>", "<a><b>"), ("aas", "  ", "aaa"), ("..", "\n\n\n", "AÉ"), ("11 ", "1 1", "\U0001f600.")]
DEEP = [(b"a", b"a"), (b"aa", b"aa"), (b"a", b"s"), (b" ", b" "), (b"  ", b"  "), (b"\n", b"\n"), (b"1", b"1"), (b".", b".")]
SPAN = 1 << 16


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tokenizer, str]:
    """A tokenizer and a text of few characters, many of them repeated, and of whole and half special tokens."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    letters = [draw(st.sampled_from(kind)) for kind in kinds for _ in range(2)]
    specials = draw(st.sampled_from(SPECIALS))
    halves = [half for token in specials for half in (token, token[:-1])]
    words = st.one_of(st.text(letters, min_size=1, max_size=5), st.sampled_from([*letters, *halves]))
    repeated = st.tuples(words, st.sampled_from([1, 2, 30, 80])).map(lambda part: part[0] * part[1])
    text = draw(st.lists(repeated, min_size=1, max_size=8).map("".join))
    parts = list({bytes([byte]) for letter in letters for byte in letter.encode()})
    merges: list[tuple[bytes, bytes]] = []
    for first, second in draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=20)):
        pair = parts[-min(first, len(parts))], parts[-min(second, len(parts))]
        if pair not in merges and len(pair[0] + pair[1]) <= 12:
            merges.append(pair)
            parts += [pair[0] + pair[1]] if pair[0] + pair[1] not in parts else []
    return Tokenizer(merges, specials, draw(st.sampled_from(sorted(PATTERNS)))), text


@settings(max_examples=300, deadline=None)
@given(cases(), st.lists(st.integers(0, 10**6), max_size=6), st.sampled_from([1, 8, 50]), st.sampled_from([40, 64]))
def test_chunks_give_the_ids_of_the_whole(case, cuts, size, block):
    tok, text = case
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(places)]
    with mock.patch.object(module, "PIECE", size), mock.patch.object(streaming, "BLOCK", block):
        assert list(tok.encode_iterable(chunks, allowed_special="all")) == tok.encode(text, allowed_special="all")


def endless(text: str, size: int) -> Iterator[str]:
    chunk = (text * SPAN)[:SPAN]
    for _ in range(size // len(chunk.encode()) + 1):
        yield chunk


def test_a_long_text_of_one_letter_gives_the_ids_of_the_whole():
    tok = Tokenizer(DEEP, ("<|a|>", "aas"), "cl100k", engine="compiled")
    chunks = [*endless("a", 300_000), "s", *endless("a", 100_000), "<|a|", ">", *endless("中", 600_000), ">"]
    assert list(tok.encode_iterable(chunks, allowed_special="all")) == tok.encode("".join(chunks), allowed_special="all")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("gpt2", "a"),
        ("o200k", "中"),
        ("cl100k_base", "\U0001f600"),
        ("cl100k", " "),
        ("cl100k", "1"),
        ("o200k", "aB"),
        ("cl100k", "."),
        ("cl100k_base", "\n"),
    ],
)
def test_memory_is_bounded_on_text_without_places_to_cut(pattern, text):
    tok = Tokenizer(DEEP, ("<|a|>",), pattern, engine="compiled")
    sum(1 for _ in tok.encode_iterable(endless(text, 2 * SPAN)))
    tracemalloc.start()
    try:
        made = sum(1 for _ in tok.encode_iterable(endless(text, 1_500_000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made >= 90_000
    assert peak < 5_000_000  # the whole at once takes more than 10 MB


def test_merging_takes_linear_time_on_text_without_places_to_cut(monkeypatch):
    tok = Tokenizer(DEEP, (), "gpt2", engine="compiled")
    merged = []
    original = streaming.StreamEncoder._merged

    def counting(self, pretokens):
        merged.append(sum(map(len, pretokens)))
        return original(self, pretokens)

    monkeypatch.setattr(streaming.StreamEncoder, "_merged", counting)
    sum(1 for _ in tok.encode_iterable(endless("a", 1_000_000)))
    assert 1_000_000 < sum(merged) < 1_200_000


@pytest.mark.parametrize(("pattern", "head", "text"), [("cl100k", "\n", " "), ("o200k", "中", "A")])
def test_scanning_takes_linear_time_where_nothing_is_certain(monkeypatch, pattern, head, text):
    scanned = []
    original = streaming.Unfinished.of

    def counting(text, pattern):
        scanned.append(len(text))
        return original(text, pattern)

    monkeypatch.setattr(streaming.Unfinished, "of", counting)
    tok = Tokenizer([], (), pattern, engine="compiled")
    with mock.patch.object(module, "PIECE", 1 << 10):
        found = list(tok.encode_iterable([head, *[text * 100] * 2_000]))
    assert found == [*head.encode(), *text.encode() * 200_000]
    assert 0 < sum(scanned) < 600_000


def test_a_block_with_nothing_final_is_read_with_the_next():
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    merges = [(a.encode(), b.encode()) for a, b in reversed(list(pairwise(letters)))]  # each waits for the one on its right
    tok = Tokenizer(merges, (), "gpt2")
    with mock.patch.object(module, "PIECE", 64), mock.patch.object(streaming, "BLOCK", 40):
        assert list(tok.encode_iterable([letters * 20])) == tok.encode(letters * 20)


def test_ids_come_before_the_text_ends(small):
    def chunks():
        yield "a" * 4 * module.PIECE
        raise RuntimeError("read to the end")

    assert next(small.encode_iterable(chunks())) == small.encode("aaaaaa")[0]


@pytest.mark.parametrize("text", ["a", ".", "中", " ", "1", "aB"])
@pytest.mark.parametrize("engine", ["portable", "compiled"])
def test_what_is_refused_is_named_with_its_place_in_the_whole(engine, text):
    tok = Tokenizer([], ("<|a|>",), "o200k", engine=engine)
    chunks = [text * 100, text * 200_000 + "<|", "a|>"]
    with mock.patch.object(module, "PIECE", 1 << 10), mock.patch.object(streaming, "BLOCK", 1 << 8):
        with pytest.raises(ValueError, match=rf"'<\|a\|>' at character {len(text) * 200_100};"):
            sum(1 for _ in tok.encode_iterable(chunks))
        with pytest.raises(ValueError, match=rf"U\+D800 at character {len(text) * 200_100}, "):
            sum(1 for _ in tok.encode_iterable([text * 100, text * 200_000, "\ud800", text * 10_000]))
