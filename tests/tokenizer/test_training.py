"""Learning merges, against a version that counts everything again before each merge, and against the library `tokenizers`."""

from __future__ import annotations

import functools
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from jaxlm.contract import InputError
from jaxlm.tokenizer import training
from jaxlm.tokenizer.choosing import COMPILE_BYTES, READY_BYTES
from jaxlm.tokenizer.corpus import Corpus
from jaxlm.tokenizer.counts import Counts
from jaxlm.tokenizer.definition import merges_by_definition
from jaxlm.tokenizer.training import count_pretokens, learn_merges

ENGINES = ("portable", "compiled")


def counted(
    texts: Iterable[str], *, pattern: str = "gpt2", special_tokens: tuple[str, ...] = (), max_bytes: int = 0, **options
) -> tuple[Counter[bytes], Corpus]:
    corpus = Corpus(special_tokens, max_bytes=max_bytes, block=options.pop("block", 1 << 20))
    counts = count_pretokens(corpus.of_texts(texts), pattern=pattern, special_tokens=special_tokens, **options)
    return counts.counter() if isinstance(counts, Counts) else counts, corpus


words = st.dictionaries(
    st.one_of(
        st.lists(st.sampled_from(b"ab"), min_size=1, max_size=12).map(bytes),
        st.lists(st.sampled_from(b"abc\x00\xff"), min_size=1, max_size=12).map(bytes),
    ),
    st.integers(1, 4),
    max_size=10,
)


@pytest.mark.parametrize("ties", ["bytes", "ids"])
@settings(max_examples=300, deadline=None)
@given(counts=words, wanted=st.integers(0, 25))
def test_merges_of_small_alphabets_are_those_of_the_definition(ties, counts, wanted):
    expected = merges_by_definition(counts, wanted, ties)
    for engine in ENGINES:
        assert learn_merges(Counter(counts), wanted, ties=ties, engine=engine) == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ties", ["bytes", "ids"])
def test_merges_of_real_text_are_those_of_the_definition(ties, engine, stdlib_texts, published):
    text = "".join(stdlib_texts)[:30_000] + stdlib_texts[-1]
    counts = Counter(piece.encode() for piece in regex.findall(published["gpt2"], text))
    assert learn_merges(counts, 250, ties=ties, engine=engine) == merges_by_definition(counts, 250, ties)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_example_of_the_course(engine):
    """CS336, assignment 1, section 2.4; words of Sennrich et al. 2016, figure 1, without the end of word."""
    counts = Counter({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6})
    assert learn_merges(counts, 6, engine=engine) == [
        (b"s", b"t"),
        (b"e", b"st"),
        (b"o", b"w"),
        (b"l", b"ow"),
        (b"w", b"est"),
        (b"n", b"e"),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_tie_rules_differ_and_are_the_ones_stated(engine):
    merges = functools.partial(learn_merges, engine=engine)
    counts = Counter({b"ab": 2, b"ba": 2, b"a\xff": 2, b"\xff\x00": 2})
    assert merges(counts, 4, ties="bytes") == [(b"\xff", b"\x00"), (b"b", b"a"), (b"a", b"\xff"), (b"a", b"b")]
    assert merges(counts, 4, ties="ids") == [(b"a", b"b"), (b"a", b"\xff"), (b"b", b"a"), (b"\xff", b"\x00")]
    # A longer string is greater than its beginning; a merged id is greater than a byte, whatever its bytes are.
    prefix = Counter({b"ab": 9, b"xab": 1, b"xac": 1, b"xa": 1})
    assert merges(prefix, 3, ties="bytes")[1:] == [(b"x", b"a"), (b"xa", b"c")]
    extension = Counter({b"ab": 9, b"yab": 3, b"yac": 3})
    assert merges(extension, 2, ties="bytes")[1] == (b"y", b"ab")
    assert merges(extension, 2, ties="ids")[1] == (b"a", b"c")


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_where_four_plausible_orders_differ(engine):
    """The pair first seen, the pair that joined is greatest, the greatest pair, the pair of smallest ids."""
    counts = Counter({b"Mn": 5, b"bz": 100, b"ab": 90, b"aba": 5, b"abz": 5, b"Ax": 5})
    begin = [(b"b", b"z"), (b"a", b"b")]
    assert learn_merges(counts, 6, ties="bytes", engine=engine) == [
        *begin,
        (b"ab", b"a"),
        (b"a", b"bz"),
        (b"M", b"n"),
        (b"A", b"x"),
    ]
    assert learn_merges(counts, 6, ties="ids", engine=engine) == [
        *begin,
        (b"A", b"x"),
        (b"M", b"n"),
        (b"a", b"bz"),
        (b"ab", b"a"),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_merges_are_those_of_tokenizers(engine, stdlib_texts):
    """That library takes the smallest pair of ids; its bytes have ids in the order of the characters that stand for them, and
    in this text some of the equally frequent pairs are of bytes that these put in another order."""
    text = "".join(stdlib_texts)[:60_000] + stdlib_texts[-1]
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + 1000, show_progress=False, initial_alphabet=alphabet)
    library.train_from_iterator([text], trainer)
    expected = [tuple(pair) for pair in json.loads(library.to_str())["model"]["merges"]]

    shown = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xA0, 0xAD)]
    character = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(shown)))}
    assert set(character.values()) == set(alphabet)
    counts, _ = counted([text])
    merges = learn_merges(counts, 1000, ties="ids", engine=engine)
    assert [tuple("".join(character[b] for b in part) for part in pair) for pair in merges] == expected


def test_more_merges_than_the_text_has_bytes_take_no_more_memory():
    for engine in ENGINES:
        assert len(learn_merges(Counter({b"abab": 1, b"c": 2}), 10**13, engine=engine)) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_fewer_merges_where_the_counts_support_no_more(engine):
    assert learn_merges(Counter({b"aaaa": 1}), 10, engine=engine) == [(b"a", b"a"), (b"aa", b"aa")]
    assert learn_merges(Counter({b"a": 5}), 10, engine=engine) == []
    assert learn_merges(Counter(), 10, engine=engine) == []
    assert learn_merges(Counter({b"ab": 0}), 10, engine=engine) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_is_never_made_twice(engine, monkeypatch):
    """It cannot happen; were it to, the vocabulary would have two ids for the same bytes."""
    monkeypatch.setattr(training, "_learned", lambda *_: iter([(97, 97), (97, 256), (256, 97)]))
    with pytest.raises(AssertionError, match="merge 2 of b'aa' and b'a' makes a token that exists"):
        learn_merges(Counter({b"aaa": 1}), 3, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_counts_in_arrays_and_in_a_dictionary_give_the_same(engine, stdlib_texts):
    counts, _ = counted(stdlib_texts[:5], engine="portable")
    assert learn_merges(Counts.of(counts), 200, engine=engine) == learn_merges(counts, 200, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_pretokens_are_counted_as_in_the_whole_text(engine, stdlib_texts, published):
    """Long texts are split in parts; what is counted must not depend on where."""
    text = "".join(stdlib_texts)[:300_000]
    for name in ("gpt2", "cl100k"):
        for block in (5_000, 1 << 20):
            counts, corpus = counted([text], pattern=name, engine=engine, block=block)
            assert counts == Counter(piece.encode() for piece in regex.findall(published[name], text))
            assert (corpus.documents, corpus.bytes) == (1, len(text.encode()))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_count_the_same(threads, stdlib_texts, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 20_000)
    texts = stdlib_texts + ["a<|s|>b<|s|>"] * 3000
    expected, _ = counted(texts, special_tokens=("<|s|>",), engine="portable")
    done: list[int] = []
    options = {"special_tokens": ("<|s|>",), "threads": threads, "advance": done.append}
    assert counted(texts, engine="compiled", **options)[0] == expected
    assert counted(texts, engine="compiled", block=7000, **options)[0] == expected
    assert len(done) > 100


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(training, "BATCH", 10)
    with pytest.raises(InputError, match="of text 50"):
        counted(["some text"] * 50 + ["\ud800"], engine="compiled", threads=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_special_tokens_separate_and_are_not_counted(engine):
    counts, _ = counted(["ab<|s|>cd <|s|><|s|>  e"], special_tokens=("<|s|>",), engine=engine)
    assert counts == {b"ab": 1, b"cd": 1, b" ": 2, b" e": 1}
    specials = ("<a>", "<a><b>", "<a><b>x")  # the longest is taken
    counts, _ = counted(["1<a><b>yy<a>3<a><b>x4"], special_tokens=specials, engine=engine)
    assert counts == {b"1": 1, b"yy": 1, b"3": 1, b"4": 1}


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_that_of_what_is_different(threads):
    """60 MB in which little is different: neither all texts nor all pre-tokens are held at once."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 20))) for _ in range(2000)]
    text = " ".join(rng.choices(words, k=100_000))
    counted([text], engine="compiled")
    tracemalloc.start()
    try:
        texts = (text[i:] for i in range(60))
        total = count_pretokens(
            Corpus(()).of_texts(texts), pattern="gpt2", special_tokens=(), threads=threads, engine="compiled"
        ).total()
        assert total > 5_000_000
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()


def test_no_more_is_read_than_it_takes_to_choose(monkeypatch):
    piece = b"some text " * 1000
    for enough in (0, READY_BYTES, COMPILE_BYTES, 1 << 40):
        monkeypatch.setattr(training.TRAINING, "are_worth", lambda work, enough=enough: work >= enough)
        read = []
        given, engine = training._chosen(read.append(i) or piece for i in range(2 * COMPILE_BYTES // len(piece)))
        assert engine == ("compiled" if enough <= COMPILE_BYTES else "portable")
        assert len(read) * len(piece) <= min(max(enough, READY_BYTES), COMPILE_BYTES) + len(piece)
        assert sum(1 for _ in given) == 2 * COMPILE_BYTES // len(piece)


@pytest.mark.parametrize("engine", ["portable", "compiled"])
@pytest.mark.parametrize("raw", [b"a\xf7\xbf\xbf\xbf b", b"\xff", b"\xed\xa0\x80", b"\xc3"])
def test_what_is_no_utf_8_is_refused(engine, raw):
    with pytest.raises(UnicodeDecodeError):
        count_pretokens([b"fine", raw], pattern="gpt2", special_tokens=("<|z|>",), threads=2, engine=engine)


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 100])
def test_max_bytes_takes_the_beginning_of_the_texts(limit):
    texts = ["one two", "日本 x", "", "three four"]  # 7, 8, 0 and 10 bytes
    counts, corpus = counted(iter(texts), max_bytes=limit)
    taken = sum(len(piece) * count for piece, count in counts.items())
    assert taken == corpus.bytes <= limit
    if limit >= 25:
        assert (corpus.documents, corpus.bytes) == (4, 25)
    whole, _ = counted(texts)
    assert len(set(counts) - set(whole)) <= 1  # the one that is cut


def test_max_bytes_reads_no_further():
    def texts():
        yield "one two"
        raise AssertionError("read on after the limit")

    assert counted(texts(), max_bytes=7)[1].bytes == 7


def test_max_bytes_cuts_no_special_token():
    assert counted(["ab cd<|s|>ef"], special_tokens=("<|s|>",), max_bytes=8)[0] == {b"ab": 1, b" cd": 1}
