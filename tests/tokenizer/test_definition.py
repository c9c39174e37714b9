"""What learns merges against the definition, on words of the text itself."""

from collections import Counter

import pytest

from jaxlm.contract import ContractError
from jaxlm.tokenizer import train, train_tokenizer
from jaxlm.tokenizer.counts import Counts
from jaxlm.tokenizer.definition import merges_by_definition, require_learned, some_of
from jaxlm.tokenizer.training import count_pretokens, learn_merges


@pytest.fixture(scope="module")
def counts(stdlib_texts):
    return count_pretokens((text.encode() for text in stdlib_texts[:40]), pattern="gpt2", special_tokens=(), engine="portable")


def by_ids(real):
    return lambda counts, wanted, *, ties, **options: real(
        counts, wanted, ties="ids" if ties == "bytes" else "bytes", **options
    )


def of_words(change):
    def make(real):
        def learn(counts, wanted, **options):
            words = counts.counter() if isinstance(counts, Counts) else counts
            return real(change(words), wanted, **options)

        return learn

    return make


FAULTS = {
    "each word once": of_words(lambda words: dict.fromkeys(words, 1)),
    "the most frequent words forgotten": of_words(lambda words: dict(Counter(words).most_common()[3:])),
    "counts of eight bits": of_words(lambda words: {word: count & 255 for word, count in words.items()}),
    "lower case": of_words(lambda words: {word.lower(): count for word, count in words.items()}),
    "one merge late": lambda real: lambda counts, wanted, **options: real(counts, wanted + 1, **options)[1:],
    "one merge too few": lambda real: lambda counts, wanted, **options: real(counts, wanted - 1, **options),
}


@pytest.mark.parametrize("ties", ["bytes", "ids"])
@pytest.mark.parametrize("form", [Counter, Counts.of])
def test_what_learns_by_the_definition_passes(counts, form, ties):
    require_learned(form(counts), learn_merges, ties=ties)


@pytest.mark.parametrize("form", [Counter, Counts.of])
@pytest.mark.parametrize("kind", FAULTS)
def test_anything_else_does_not(counts, form, kind):
    with pytest.raises(ContractError, match=r"merges of \d+ words of the text: expected .* from merge \d+ on"):
        require_learned(form(counts), FAULTS[kind](learn_merges), ties="bytes")


@pytest.mark.parametrize(
    "words",
    [
        {b"a": 5}, {b"aaaa": 2, b"aa": 1}, {b"ab": 3, b"ba": 3}, {b"x" * 5000: 9}, {b"abab": 0, b"cd": 1},
        {bytes([i, j]): 1 for i in range(40) for j in range(40)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("ties", ["bytes", "ids"])
def test_few_words_many_ties_and_words_without_end_are_no_fault(words, ties):
    for held in (words, Counts.of(words)):
        require_learned(held, learn_merges, ties=ties)
    assert merges_by_definition(words, 9, ties) == learn_merges(words, 9, ties=ties)


def test_frequent_and_rare_words_are_among_them(counts):
    for held in (counts, Counts.of(counts)):
        words = some_of(held)
        assert 128 < len(words) <= 400
        assert all(counts[word] == count for word, count in words.items())
        assert {word for word, _ in Counter(counts).most_common(50) if len(word) <= 32} <= set(words)
        assert min(words.values()) == 1


def test_no_tokenizer_comes_of_other_merges(stdlib_texts, monkeypatch):
    monkeypatch.setattr(train, "learn_merges", FAULTS["each word once"](learn_merges))
    with pytest.raises(ContractError, match="contract 'tokenizer' is broken at the merges of"):
        train_tokenizer(stdlib_texts[:5], vocab_size=400)
