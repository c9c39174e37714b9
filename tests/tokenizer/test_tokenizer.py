"""Text to ids and back, against tiktoken with the same merges; special tokens, chunks, documents, what is refused."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import Tokenizer, portable
from jaxlm.tokenizer import tokenizer as module
from jaxlm.tokenizer.pretoken import special_starts

PARTS = [
    "a",
    "aa",
    "s",
    "'",
    "'ll",
    "x",
    "É",
    "e\u0301",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "1",
    "23",
    ".",
    "你",
    "\U0001f600",
    "\u200d",
]
PARTS += ["\u0558", "\x00", "<|a|>", "<|a|><|b|>", "<|a b|>", "aaa!", "<|a|", "<|", "|>", "<|a b", "!"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
quick = settings(max_examples=200, deadline=None)


# ---- against tiktoken --------------------------------------------------------------------------------------------


def test_ids_of_the_standard_library_are_those_of_tiktoken(trained, oracle, stdlib_texts):
    for text in stdlib_texts:
        assert trained.encode_ordinary(text) == oracle.encode_ordinary(text)


@quick
@given(text=texts)
def test_ids_of_any_text_are_those_of_tiktoken(trained, oracle, text):
    assert trained.encode_ordinary(text) == oracle.encode_ordinary(text)


@quick
@given(text=st.lists(st.sampled_from([*PARTS, "<|endoftext|>", "<|user turn|>"]), max_size=12).map("".join))
def test_ids_with_special_tokens_are_those_of_tiktoken(trained, oracle, text):
    assert trained.encode(text, allowed_special="all") == oracle.encode(text, allowed_special="all")


@pytest.mark.parametrize("piece", ["a", " ", "\n", "0", "'s", "^", "\u4f60", "ab", "\r\n"])
def test_ids_of_endless_repetition_are_those_of_tiktoken(trained, oracle, piece):
    text = piece * 20_000
    assert trained.encode(text) == oracle.encode_ordinary(text)


@pytest.mark.realdata
def test_ids_of_real_texts_are_those_of_tiktoken(trained, oracle, real_data: Path):
    found = 0
    for pattern in ("tinyshakespeare/*.txt", "wikitext2/valid.txt", "udhr/**/*.txt", "tldr/multi.jsonl"):
        for path in sorted(real_data.glob(pattern))[:40]:
            text = path.read_bytes().decode(errors="replace")[:250_000]
            assert trained.encode_ordinary(text) == oracle.encode_ordinary(text), path
            found += 1
    assert found > 0


# ---- there and back ----------------------------------------------------------------------------------------------


@quick
@given(text=texts)
def test_decode_of_encode_is_the_text(trained, small, text):
    for tok in (trained, small):
        assert tok.decode(tok.encode_ordinary(text)) == text
        assert tok.decode(tok.encode(text, allowed_special="all")) == text
        assert tok.decode_bytes(tok.encode_ordinary(text)) == text.encode()


@quick
@given(raw=st.binary())
def test_bytes_that_are_no_text_become_replacement_characters(small, raw):
    assert small.decode_bytes(list(raw)) == raw
    assert small.decode(list(raw)) == raw.decode("utf-8", errors="replace")


def test_decode_takes_arrays_and_refuses_what_is_no_id(small):
    assert small.decode(np.array([97, 256, 97], np.int32)) == "aaaa"
    for bad in (-1, small.vocab_size, 10**9):
        with pytest.raises(ValueError, match=rf"expected ids in 0\.\.{small.vocab_size - 1}, found {bad}"):
            small.decode_bytes([97, bad])
    for bad in (97.0, "97", None):
        with pytest.raises(TypeError):
            small.decode([bad])


@quick
@given(text=texts)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(trained, text):
    assert int(trained.byte_lengths[trained.encode_ordinary(text)].sum()) == len(text.encode())


def test_byte_lengths_are_zero_for_special_tokens_alone(small):
    lengths = small.byte_lengths
    assert lengths.dtype == np.int32
    assert lengths.shape == (small.vocab_size,)
    assert {i for i, n in enumerate(lengths) if n == 0} == set(small.special_ids.values())
    assert all(lengths[256 + rank] == len(a + b) for rank, (a, b) in enumerate(small.merges))
    assert not lengths.flags.writeable


# ---- special tokens ----------------------------------------------------------------------------------------------


def test_the_longest_special_token_wins(small):
    one, both, spaced, bang = (small.special_ids[name] for name in small.special_tokens)
    assert small.encode("<|a|><|b|>", allowed_special="all") == [both]
    assert small.encode("<|a|><|a|><|b|>", allowed_special="all") == [one, both]
    assert small.encode("<|a|><|b", allowed_special="all") == [one, *b"<|b"]
    assert small.encode("<|a b|>aaa!", allowed_special="all") == [spaced, bang]


def test_nothing_is_merged_across_a_special_token(small):
    one = small.special_ids["<|a|>"]
    assert small.encode("aa<|a|>a", allowed_special="all") == [256, one, 97]
    # Spaces before a special token are at the end of their text: all of them are one pre-token.
    assert small.encode("  <|a|>  a", allowed_special="all") == [*small.encode("  "), one, *small.encode("  a")]


def test_special_text_is_refused_unless_allowed(small):
    with pytest.raises(
        ValueError, match=r"found '<\|a\|>' at character 2; allow it with allowed_special, or .* encode_ordinary"
    ):
        small.encode("x <|a|>")
    with pytest.raises(ValueError, match=r"'<\|a\|><\|b\|>' at character 5"):
        small.encode("<|a|><|a|><|b|>", allowed_special={"<|a|>"})
    assert small.encode("<|a|>", allowed_special={"<|a|>"}) == [small.special_ids["<|a|>"]]
    assert small.encode("<|a|>", allowed_special="<|a|>") == [small.special_ids["<|a|>"]]
    assert small.encode_ordinary("<|a|>") == [60, 124, 97, 263]
    with pytest.raises(ValueError, match=r"allowed_special: expected some of .* found \['<\|z\|>'\]"):
        small.encode("x", allowed_special=("<|z|>",))


@quick
@given(text=texts)
def test_ordinary_ids_hold_no_special_token(small, text):
    assert all(i < 256 + len(small.merges) for i in small.encode_ordinary(text))


def test_documents_open_and_close_with_the_first_special_token(small):
    ids = small.encode_document("aa <|a|>")
    assert ids.dtype == np.int32
    assert ids.tolist() == [small.bos_id, *small.encode_ordinary("aa <|a|>"), small.eos_id]
    assert small.bos_id == small.eos_id == small.special_ids["<|a|>"]
    with pytest.raises(ValueError, match="special token that opens"):
        Tokenizer.from_merges([], ()).encode_document("a")


@pytest.mark.parametrize(
    ("special_tokens", "message"),
    [
        (("",), "at least one character"),
        ((7,), "at least one character"),
        (("<|a|>", "<|b|>", "<|a|>"), r"no repetition, found '<\|a\|>' 2 times"),
        (("a",), "no single byte"),
        (("\x00",), "no single byte"),
        (("x\ud800",), "lone surrogate"),
        ("<|a|>", "found one str"),
    ],
)
def test_impossible_special_tokens_are_refused(special_tokens, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_merges([], special_tokens)


# ---- chunks and batches ------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 10**6), max_size=8), size=st.integers(1, 20))
def test_chunks_give_the_ids_of_the_whole(small, trained, text, cuts, size):
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(places)]
    with mock.patch.object(module, "PIECE", size):
        for tok in (small, trained):
            assert list(tok.encode_iterable(chunks, allowed_special="all")) == tok.encode(text, allowed_special="all")


@quick
@given(text=texts, size=st.integers(1, 20))
def test_chunks_are_refused_as_the_whole_is(small, text, size):
    def outcome(encode):
        try:
            return encode()
        except ValueError as error:
            return str(error)

    whole = outcome(lambda: small.encode(text, allowed_special={"<|a|>"}))
    with mock.patch.object(module, "PIECE", size):
        assert outcome(lambda: list(small.encode_iterable(iter(text), allowed_special={"<|a|>"}))) == whole


def test_large_texts_in_chunks_give_the_ids_of_the_whole(trained, stdlib_texts):
    text = "<|endoftext|>".join(stdlib_texts)
    draw = random.Random(0)
    chunks, at = [], 0
    while at < len(text):
        chunks.append(text[at : at + draw.choice([1, 7, 4096, 300_000])])
        at += len(chunks[-1])
    assert list(trained.encode_iterable(chunks, allowed_special="all")) == trained.encode(text, allowed_special="all")


def test_encode_iterable_needs_little_memory(small):
    def chunks():
        for i in range(400):
            yield f"aa {i} " * 1500

    sum(1 for _ in small.encode_iterable(["aa 1 " * 1_000_000]))  # tables and compiled code are there
    tracemalloc.start()
    try:
        ids = sum(1 for _ in small.encode_iterable(chunks()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ids > 2_000_000  # 16 MB as a list, 4 MB of text
    assert peak < 3_000_000


def test_encode_iterable_begins_before_the_text_ends(small):
    def chunks():
        yield "word " * module.PIECE
        raise RuntimeError("read to the end")

    assert next(small.encode_iterable(chunks())) == ord("w")


def test_batches_are_encoded_one_by_one(small):
    assert small.encode_batch(["aa", "", "x"]) == [[256], [], [120]]
    assert small.encode_batch(["<|a|>"], allowed_special="all") == [[small.bos_id]]
    with pytest.raises(ValueError, match="found one str"):
        small.encode_batch("aa")


def test_a_full_cache_changes_no_ids(stdlib_texts, trained):
    fresh = Tokenizer.from_merges(trained.merges, trained.special_tokens, trained.pattern)
    with mock.patch.object(portable, "CACHE", 50):
        assert fresh.encode(stdlib_texts[0]) == trained.encode(stdlib_texts[0])
        assert len(fresh._engines.portable._known) <= 50


@pytest.mark.parametrize("surrogate", [0xD800, 0xDFFF, 0xDC80])
def test_lone_surrogates_are_refused_with_their_place(small, surrogate):
    message = rf"lone surrogate U\+{surrogate:04X} at character 7"
    for encode in (small.encode, small.encode_ordinary, lambda s: list(small.encode_iterable(iter(s)))):
        with pytest.raises(ValueError, match=message):
            encode("aa aa a" + chr(surrogate))
    with pytest.raises(ValueError, match=message):
        small.encode("<|a|>aa" + chr(surrogate), allowed_special="all")


# ---- merges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(b"ab", b"c")], "earlier merges at rank 0"),
        ([(b"a", b"")], "earlier merges at rank 0"),
        ([(b"a", b"b"), (b"x", b"y"), (b"a", b"b")], "second time"),
    ],
)
def test_impossible_merges_are_refused(merges, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_merges(merges)


def test_fingerprint_tells_tokenizers_of_equal_size_apart():
    merges = [(b"a", b"b"), (b"c", b"d")]
    same = [
        Tokenizer.from_merges(merges),
        Tokenizer.from_merges(merges[::-1]),
        Tokenizer.from_merges([(b"a", b"b"), (b"c", b"e")]),
        Tokenizer.from_merges(merges, pattern="cl100k"),
        Tokenizer.from_merges(merges, special_tokens=("<|eot|>",)),
    ]
    assert len({tok.vocab_size for tok in same}) == 1
    assert len({tok.fingerprint for tok in same}) == len(same)
    two = [Tokenizer.from_merges(merges, names).fingerprint for names in (("<|a|>", "<|b|>"), ("<|b|>", "<|a|>"))]
    assert two[0] != two[1]
    assert Tokenizer.from_merges([[b"a", b"b"], [b"c", b"d"]], ["<|endoftext|>"]).fingerprint == same[0].fingerprint


@quick
@given(text=st.lists(st.sampled_from([*PARTS, "<|", "<", "aa", "aaa"]), max_size=12).map("".join))
def test_a_text_without_the_beginnings_of_special_tokens_has_none_of_them(small, text):
    if any(token in text for token in small.special_tokens):
        assert small._has_special(text)


def test_many_special_tokens_begin_with_few_beginnings():
    tok = Tokenizer.from_merges([], [f"<|reserved_{i}|>" for i in range(1000)])
    assert special_starts(tok.special_tokens) == ("<|",)
    assert tok.encode("a<|reserved_999|>", allowed_special="all") == [97, 256 + 999]


@pytest.mark.parametrize("wrong", [b"x", 1, None])
def test_what_is_no_text_is_refused_everywhere(small, wrong):
    batch, stream = lambda x: small.encode_batch([x]), lambda x: list(small.encode_iterable([x]))
    for encode in (small.encode, small.encode_ordinary, batch, stream):
        with pytest.raises(TypeError, match=f"expected .*str.*found {type(wrong).__name__}"):
            encode(wrong)


@pytest.mark.parametrize("threads", [0, -3])
def test_less_than_one_thread_is_refused(small, threads):
    with pytest.raises(ValueError, match=f"threads: expected at least 1, or None, found {threads}"):
        small.encode_batch(["a"], threads=threads)


def test_lists_of_ids_own_what_they_hold(stdlib_texts, trained):
    """Lists are filled through addresses: the integers' references must be those of the lists, and outlive the tokenizer."""
    text = "\n".join(stdlib_texts)[:20_000]
    tok = Tokenizer(trained.merges, trained.special_ids, trained.pattern)
    ids = tok.encode_to_numpy(text)
    integers, addresses = tok._integers
    assert addresses.tolist() == [id(integer) for integer in integers.tolist()]
    often = int(np.bincount(ids[ids > 256]).argmax())  # smaller integers may be immortal: nothing counts their references
    before = sys.getrefcount(integers[often])
    held = tok.encode(text)
    counted = sys.getrefcount(integers[often]) - before
    assert counted == held.count(often)
    del integers, addresses, tok
    gc.collect()
    assert held == ids.tolist()
    assert held == trained.encode(text)
