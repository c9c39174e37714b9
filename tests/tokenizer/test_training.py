"""Learning merges, against a version that counts everything again before each merge, and against the library `tokenizers`."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from jaxlm.contract import InputError
from jaxlm.tokenizer.training import count_pretokens, learn_merges


def naive(counts: dict[bytes, int], wanted: int, ties: str) -> list[tuple[bytes, bytes]]:
    """The definition: count all pairs, take the most frequent by the tie rule, replace it everywhere, again."""
    words = [([bytes([b]) for b in word], count) for word, count in counts.items()]
    ids = {bytes([i]): i for i in range(256)}
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < wanted:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        most = max(pairs.values())
        tied = [pair for pair, count in pairs.items() if count == most]
        best = max(tied) if ties == "bytes" else min(tied, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids[best[0] + best[1]] = len(ids)
        for index, (word, count) in enumerate(words):
            out: list[bytes] = []
            i = 0
            while i < len(word):
                step = 2 if tuple(word[i : i + 2]) == best else 1
                out.append(b"".join(word[i : i + step]))
                i += step
            words[index] = (out, count)
    return merges


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
    assert learn_merges(Counter(counts), wanted, ties=ties) == naive(counts, wanted, ties)


@pytest.mark.parametrize("ties", ["bytes", "ids"])
def test_merges_of_real_text_are_those_of_the_definition(ties, stdlib_texts, published):
    text = "".join(stdlib_texts)[:30_000] + stdlib_texts[-1]
    counts = Counter(piece.encode() for piece in regex.findall(published["gpt2"], text))
    assert learn_merges(counts, 250, ties=ties) == naive(counts, 250, ties)


def test_tie_rules_differ_and_are_the_ones_stated():
    counts = Counter({b"ab": 2, b"ba": 2, b"a\xff": 2, b"\xff\x00": 2})
    assert learn_merges(counts, 4, ties="bytes") == [(b"\xff", b"\x00"), (b"b", b"a"), (b"a", b"\xff"), (b"a", b"b")]
    assert learn_merges(counts, 4, ties="ids") == [(b"a", b"b"), (b"a", b"\xff"), (b"b", b"a"), (b"\xff", b"\x00")]
    # A longer string is greater than its beginning; a merged id is greater than a byte, whatever its bytes are.
    prefix = Counter({b"ab": 9, b"xab": 1, b"xac": 1, b"xa": 1})
    assert learn_merges(prefix, 3, ties="bytes")[1:] == [(b"x", b"a"), (b"xa", b"c")]
    extension = Counter({b"ab": 9, b"yab": 3, b"yac": 3})
    assert learn_merges(extension, 2, ties="bytes")[1] == (b"y", b"ab")
    assert learn_merges(extension, 2, ties="ids")[1] == (b"a", b"c")


def test_merges_of_ascii_are_those_of_tokenizers(stdlib_texts, published):
    """The ids of that library are in the order of characters, which for ASCII is that of bytes; it takes the smallest pair."""
    text = "".join(stdlib_texts).encode("ascii", "ignore").decode()[:400_000]
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split(Regex(published["gpt2"]), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=len(set(text)) + 800, show_progress=False)
    library.train_from_iterator([text], trainer)
    by_id = sorted(library.get_vocab().items(), key=lambda item: item[1])
    counts = count_pretokens([text], pattern="gpt2", special_tokens=()).counts
    merges = learn_merges(counts, 800, ties="ids")
    assert [(a + b).decode() for a, b in merges] == [token for token, _ in by_id[len(set(text)) :]]


def test_fewer_merges_where_the_counts_support_no_more():
    assert learn_merges(Counter({b"aaaa": 1}), 10) == [(b"a", b"a"), (b"aa", b"aa")]
    assert learn_merges(Counter({b"a": 5}), 10) == []
    assert learn_merges(Counter(), 10) == []


def test_pretokens_are_counted_as_in_the_whole_text(stdlib_texts, published):
    """Long texts are split in parts; what is counted must not depend on where."""
    text = "".join(stdlib_texts)[:300_000]
    for name in ("gpt2", "cl100k"):
        corpus = count_pretokens([text], pattern=name, special_tokens=())
        assert corpus.counts == Counter(piece.encode() for piece in regex.findall(published[name], text))
        assert (corpus.documents, corpus.bytes) == (1, len(text.encode()))


def test_special_tokens_separate_and_are_not_counted():
    corpus = count_pretokens(["ab<|s|>cd <|s|><|s|>  e"], pattern="gpt2", special_tokens=("<|s|>",))
    assert corpus.counts == {b"ab": 1, b"cd": 1, b" ": 2, b" e": 1}


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 100])
def test_max_bytes_takes_the_beginning_of_the_texts(limit):
    texts = ["one two", "日本 x", "", "three four"]  # 7, 8, 0 and 10 bytes
    corpus = count_pretokens(iter(texts), pattern="gpt2", special_tokens=(), max_bytes=limit)
    taken = sum(len(piece) * count for piece, count in corpus.counts.items())
    assert taken == corpus.bytes <= limit
    if limit >= 25:
        assert (corpus.documents, corpus.bytes) == (4, 25)
    whole = count_pretokens(texts, pattern="gpt2", special_tokens=()).counts
    assert set(list(corpus.counts)[:-1]) <= set(whole)


def test_max_bytes_reads_no_further():
    def texts():
        yield "one two"
        raise AssertionError("read on after the limit")

    assert count_pretokens(texts(), pattern="gpt2", special_tokens=(), max_bytes=7).bytes == 7


def test_max_bytes_cuts_no_special_token():
    corpus = count_pretokens(["ab cd<|s|>ef"], pattern="gpt2", special_tokens=("<|s|>",), max_bytes=8)
    assert corpus.counts == {b"ab": 1, b" cd": 1}


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="iterable of str, found bytes"):
        count_pretokens([b"raw"], pattern="gpt2", special_tokens=())
    with pytest.raises(InputError, match=r"U\+D800 at character 2 of text 1"):
        count_pretokens(["fine", "ab\ud800"], pattern="gpt2", special_tokens=())
