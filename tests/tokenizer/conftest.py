"""Texts of the standard library and tokenizers trained on them, once for all tests of this room; tiktoken as the oracle."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import tiktoken

from jaxlm.tokenizer import Tokenizer, train_tokenizer

# As OpenAI publishes them, with `\s`; that of cl100k in its first form, and in the one tiktoken has now.
PUBLISHED = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    "cl100k": (
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
        r"""|\s+(?!\S)|\s+"""
    ),
    "cl100k_base": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"""
        r"""|\s+(?!\S)|\s"""
    ),
    "o200k": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        ]
    ),
}
SCRIPTS = (
    "It's HE'LL we'Ve don't 'tis 'ſ x'sy\r\n\r\n \t  indented\u00a0nbsp\u3000wide\u2028line 0 12 345 6789 123456789 ٣٤ Ⅷ ½ x²\n"
    "naïve café e\u0301 Straße İstanbul ŉ ﬁ “quotes” Привет, мир! Γειά σου שָׁלוֹם مرحبا नमस्ते สวัสดี 你好,世界。こんにちは "
    "안녕하세요 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\U00010348\x00\x1c\x1f\x7f\x85\ufeff"
    "\ufffd\u0558a\u0558  \n "
)


@pytest.fixture(scope="session")
def published() -> dict[str, str]:
    """The patterns as published."""
    return PUBLISHED


@pytest.fixture(scope="session")
def stdlib_texts() -> list[str]:
    """About 1.5 MB of the standard library's source, and a text of many scripts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for name in ("asyncio", "email", "json", "unittest", "encodings") for p in sorted((root / name).glob("*.py"))]
    return [p.read_bytes().decode(errors="replace") for p in paths] + [SCRIPTS * 20]


@pytest.fixture(scope="session", params=("gpt2", "cl100k", "cl100k_base", "o200k"))
def trained(request: pytest.FixtureRequest, stdlib_texts: list[str]) -> Tokenizer:
    """A tokenizer of 1500 ids, for each pattern."""
    return train_tokenizer(
        stdlib_texts, vocab_size=1500, pattern=request.param, special_tokens=("<|endoftext|>", "<|user turn|>")
    )


@pytest.fixture(scope="session")
def oracle(trained: Tokenizer) -> tiktoken.Encoding:
    """tiktoken with the merges of `trained` and the published pattern."""
    special = {name: trained.special_ids[name] for name in trained.special_tokens}
    ranks = {text: i for i, text in trained.vocab.items() if i not in special.values()}
    return tiktoken.Encoding("oracle", pat_str=PUBLISHED[trained.pattern], mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """A tokenizer made by hand: merges that meet each other, special tokens that begin like each other or hold a space."""
    merges = [
        (b"a", b"a"),
        (b"aa", b"a"),
        (b"l", b"l"),
        (b"'", b"ll"),
        (b" ", b" "),
        (b" ", b"a"),
        (b"\r", b"\n"),
        (b"|", b">"),
    ]
    return Tokenizer.from_merges(merges, ("<|a|>", "<|a|><|b|>", "<|a b|>", "aaa!"), "gpt2")
