"""Compiled encoding: ids are those of tiktoken and of the other engine, whatever the cache has seen or forgotten."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import Tokenizer
from jaxlm.tokenizer.compiled import encode
from jaxlm.tokenizer.compiled.encode import Engine, Tables, Worker
from jaxlm.tokenizer.portable import Portable
from jaxlm.tokenizer.vocabulary import Vocabulary

PARTS = [
    "a",
    "aa",
    "s",
    "'",
    "'ll",
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
PARTS += [
    "\u200d",
    "antidisestablishmentarianism",
    "x" * 15,
    "x" * 16,
    "x" * 17,
    "y" * 127,
    "y" * 128,
    "y" * 129,
    "\x00",
    "\x00\x00",
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
quick = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def fast(trained) -> Tokenizer:
    return Tokenizer(trained.merges, trained.special_tokens, trained.pattern, engine="compiled")


@pytest.fixture(scope="module")
def worker(trained) -> Worker:
    """One whose cache is so small that it forgets all the time."""
    return Worker(Tables(trained.vocabulary, trained.pattern), rows=16, arena=200)


def test_ids_of_the_standard_library_are_those_of_tiktoken_cold_and_warm(fast, oracle, stdlib_texts):
    for text in [*stdlib_texts, *stdlib_texts]:
        assert fast.encode_ordinary(text) == oracle.encode_ordinary(text)


@quick
@given(text=texts)
def test_ids_of_any_text_are_those_of_tiktoken(fast, worker, oracle, text):
    expected = oracle.encode_ordinary(text)
    assert fast.encode_ordinary(text) == expected
    assert worker.encode([text.encode()])[0].tolist() == expected


@quick
@given(many=st.lists(texts, min_size=1, max_size=6))
def test_many_texts_at_once_are_encoded_as_one_by_one(fast, oracle, many):
    assert [ids.tolist() for ids in fast.encode_batch_to_numpy(many)] == [oracle.encode_ordinary(text) for text in many]


@pytest.mark.parametrize("piece", ["a", " ", "\n", "0", "'s", "^", "\u4f60", "ab", "\r\n", "\U0001f600", "aB", "\t "])
def test_ids_of_endless_repetition_are_those_of_the_other_engine(fast, trained, piece):
    text = piece * 20_000
    assert np.array_equal(fast.encode_to_numpy(text), Portable(trained.vocabulary, trained.pattern).encode(text))


def test_pretokens_with_equal_hashes_do_not_get_each_others_ids(trained):
    """As if another pre-token had the same hashes: the bytes that a row's pre-token has in the arena are changed under it."""
    engine = Worker(Tables(trained.vocabulary, trained.pattern))
    text = "antidisestablishmentarianism"
    expected = engine.encode([text.encode()])[0].tolist()
    assert len(text) > encode.INLINE
    words = (len(text) + 3) // 4
    engine._words.view(np.uint8)[3] ^= 1
    engine._words[words : words + len(expected)] = 7
    assert engine.encode([text.encode()])[0].tolist() == expected
    engine._words.view(np.uint8)[3] ^= 1  # and with its own bytes again, it is the row that answers
    assert engine.encode([text.encode()])[0].tolist() == [7] * len(expected)


def test_other_ids_outside_are_written():
    merges = [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c"), (b"a", b"bc")]  # abc is made in two ways
    ids = [*range(1000, 1256), 5, 7, 6]
    engine = Engine(Vocabulary.of(merges, (), ids), "gpt2")
    assert engine.encode([b"abcab bc" + b"a" * 200])[0].tolist()[:4] == [7, 5, 1032, 6]
    assert Portable(Vocabulary.of(merges, (), ids), "gpt2").encode("abcab bc").tolist() == [7, 5, 1032, 6]


def test_threads_share_a_tokenizer(fast, stdlib_texts):
    expected = [fast.encode_to_numpy(text) for text in stdlib_texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, ids in zip(pool.map(fast.encode_to_numpy, stdlib_texts), expected, strict=True):
                assert np.array_equal(found, ids)
    for threads in (1, 2, 5):
        batch = fast.encode_batch_to_numpy(stdlib_texts, threads=threads)
        assert all(np.array_equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_more_text_than_places_is_refused(fast, monkeypatch):
    monkeypatch.setattr(encode, "LIMIT_BYTES", 10)
    with pytest.raises(ValueError, match="expected less than 10 bytes of text at once"):
        fast.encode("0123456789")


@pytest.mark.realdata
def test_ids_of_real_texts_are_those_of_tiktoken(fast, oracle, real_data):
    found = 0
    for pattern in ("udhr/**/*.html", "langid_sentences/**/*.txt", "peps/*.rst", "tldr/multi.jsonl"):
        for path in sorted(real_data.glob(pattern))[::25]:
            text = path.read_bytes().decode(errors="replace")[:400_000]
            assert fast.encode_ordinary(text) == oracle.encode_ordinary(text), path
            found += 1
    assert found > 10


STARVED = """
import resource
from jaxlm.tokenizer import Tokenizer
tok = Tokenizer([(b"a", b"a")], (), "gpt2", engine="compiled")
tok.encode_to_numpy("aa" * 100), list(tok.encode_iterable(["aa"] * 10))
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20), -1))
text = "a" * (30 << 20)
for _ in range(2):
    try:
        tok.encode_to_numpy(text)
        print("encoded")
    except MemoryError as error:
        print(error)
print(len(tok.encode_to_numpy("a" * 1001)))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to limit the memory of a process")
def test_memory_that_runs_out_is_said_every_time_and_changes_no_ids():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=True)
    message = f"expected memory for a pre-token of up to {30 << 20} bytes, found none"
    assert done.stdout.splitlines() == [message, message, "501"]
