"""Training from texts: what does not matter to the result, what is recorded, what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from jaxlm.contract import InputError
from jaxlm.tokenizer import Tokenizer, TokenizerConfig, train_from_config, train_tokenizer, training
from jaxlm.tokenizer.choosing import COMPILE_BYTES
from jaxlm.tokenizer.train import train_tokenizer_from_files

WORDS = [
    "singer",
    "ringing",
    "bringing",
    "walking",
    "talker",
    "house",
    "mouse",
    "morning",
    "evening",
    "garden",
    "water",
    "letter",
]
TEXTS = [f"the {word} and another {word} of {word}s, {number}!\n" for number, word in enumerate(WORDS)]


@pytest.mark.parametrize("ties", ["bytes", "ids"])
def test_order_of_texts_does_not_matter(ties, stdlib_texts):
    texts = stdlib_texts[:10] + stdlib_texts[-1:]
    expected = train_tokenizer(texts, vocab_size=500, ties=ties)
    for seed in range(2):
        shuffled = random.Random(seed).sample(texts, len(texts))
        assert train_tokenizer(iter(shuffled), vocab_size=500, ties=ties).fingerprint == expected.fingerprint


def test_texts_joined_by_a_special_token_train_the_same():
    joined = train_tokenizer(["<|endoftext|>".join(TEXTS)], vocab_size=300)
    assert joined.fingerprint == train_tokenizer(TEXTS, vocab_size=300).fingerprint
    assert not any(b"<|" in a + b for a, b in joined.merges)


def test_hash_seed_does_not_matter():
    code = f"from jaxlm.tokenizer import train_tokenizer; print(train_tokenizer({TEXTS!r}, vocab_size=300).fingerprint)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert found == {train_tokenizer(TEXTS, vocab_size=300).fingerprint + "\n"}


def test_compiled_code_trains_the_same(stdlib_texts, monkeypatch):
    texts = stdlib_texts * 2
    assert sum(map(len, texts)) > COMPILE_BYTES
    options = {"vocab_size": 600, "special_tokens": ("<|endoftext|>", "import")}
    found = [train_tokenizer(texts, threads=threads, **options) for threads in (1, 3)]
    monkeypatch.setattr(training.TRAINING, "are_worth", lambda work: False)
    expected = train_tokenizer(texts, **options)
    for tok in found:
        assert tok.fingerprint == expected.fingerprint
        assert tok.manifest.provenance == expected.manifest.provenance


def test_files_train_as_their_texts_do(tmp_path, stdlib_texts, monkeypatch):
    texts = [*TEXTS, "line\r\nline\r\n", *stdlib_texts[-3:]]
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes("<|endoftext|>".join(texts[:5]).encode())
    two.write_bytes("<|endoftext|>".join(texts[5:]).encode())
    expected = train_tokenizer(texts, vocab_size=320)
    for engine in (True, False):
        monkeypatch.setattr(training.TRAINING, "are_worth", lambda work, engine=engine: engine)
        tok = train_tokenizer_from_files([one, str(two)], vocab_size=320, threads=2)
        assert tok.fingerprint == expected.fingerprint
        provenance = tok.manifest.provenance
        assert provenance["documents"] == 2
        assert provenance["bytes"] == one.stat().st_size + two.stat().st_size
        for name in ("pretokens", "distinct_pretokens", "ties"):
            assert provenance[name] == expected.manifest.provenance[name]
    part = train_tokenizer_from_files([one, two], vocab_size=260, max_bytes=100)
    assert part.manifest.provenance["documents"] == 1
    assert 90 < part.manifest.provenance["bytes"] <= 100


def test_files_that_are_none_are_refused(tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"text \x80")
    with pytest.raises(InputError, match=r"bad.txt: expected UTF-8, found the byte 0x80 at byte 5"):
        train_tokenizer_from_files([bad], vocab_size=300)
    with pytest.raises(InputError, match=r"gone.txt: expected a text file, found: No such file"):
        train_tokenizer_from_files([tmp_path / "gone.txt"], vocab_size=300)
    for paths in (bad, str(bad)):
        with pytest.raises(ValueError, match="expected a list of paths, found one"):
            train_tokenizer_from_files(paths, vocab_size=300)
    with pytest.raises(InputError, match="empty corpus"):
        train_tokenizer_from_files([], vocab_size=300)


def test_importing_the_room_imports_no_jax():
    code = "import sys, jaxlm.tokenizer; print([name for name in ('jax', 'numba', 'flax') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_ids_are_bytes_then_merges_then_specials():
    tok = train_tokenizer(TEXTS, vocab_size=300, special_tokens=("<|b|>", "<|a|>"))
    assert tok.vocab_size == len(tok.vocab) == 300
    assert list(tok.vocab) == list(range(300))
    assert [tok.vocab[i] for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [tok.vocab[256 + rank] for rank in range(len(tok.merges))] == [a + b for a, b in tok.merges]
    assert len(set(tok.vocab.values())) == 300
    assert tok.special_ids == {"<|b|>": 298, "<|a|>": 299}
    assert tok.special_tokens == ("<|b|>", "<|a|>")
    assert (tok.bos_id, tok.eos_id) == (298, 298)


def test_training_is_recorded_but_not_in_the_fingerprint():
    tok = train_tokenizer(TEXTS, vocab_size=300, pattern="cl100k")
    provenance = tok.manifest.provenance
    assert provenance["documents"] == len(TEXTS)
    assert provenance["bytes"] == sum(map(len, TEXTS))
    assert provenance["ties"] == "bytes"
    assert tok.fingerprint == Tokenizer.from_merges(tok.merges, tok.special_tokens, "cl100k").fingerprint


def test_smallest_vocabulary_has_no_merges():
    tok = train_tokenizer(["ab"], vocab_size=257)
    assert tok.merges == []
    assert tok.encode("ab") == [97, 98]


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"vocab-size: expected >= 258 \(256 bytes and 2 special tokens\), found 257"):
        train_tokenizer(TEXTS, vocab_size=257, special_tokens=("<|a|>", "<|b|>"))


def test_a_corpus_that_supports_fewer_merges_is_refused_with_what_it_supports():
    with pytest.raises(InputError, match=r"supports 743 merges, found 4 bytes that support 2; .* at most 259"):
        train_tokenizer(["aaaa"], vocab_size=1000)
    assert train_tokenizer(["aaaa"], vocab_size=259).vocab_size == 259


@pytest.mark.parametrize("texts", [[], [""], ["<|endoftext|>", ""]])
def test_an_empty_corpus_is_refused(texts):
    with pytest.raises(InputError, match="empty corpus"):
        train_tokenizer(texts, vocab_size=300)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="found one str"):
        train_tokenizer("text", vocab_size=300)
    with pytest.raises(ValueError, match="ties"):
        train_tokenizer(TEXTS, vocab_size=300, ties="first")
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        train_tokenizer(TEXTS, vocab_size=300, threads=0)
    with pytest.raises(ValueError, match="pattern"):
        train_tokenizer(TEXTS, vocab_size=300, pattern="p50k")


def test_train_from_config_follows_every_option():
    cfg = TokenizerConfig(vocab_size=280, pattern="cl100k", ties="ids", special_tokens=("<|z|>",), train_bytes=200)
    tok = train_from_config(TEXTS, cfg)
    same = train_tokenizer(TEXTS, vocab_size=280, pattern="cl100k", ties="ids", special_tokens=("<|z|>",), max_bytes=200)
    assert tok.fingerprint == same.fingerprint
    assert (tok.vocab_size, tok.pattern, tok.special_tokens) == (280, "cl100k", ("<|z|>",))
    assert 180 < tok.manifest.provenance["bytes"] <= 200
    assert tok.manifest.provenance["ties"] == "ids"
