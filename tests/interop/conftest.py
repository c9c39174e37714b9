"""Tokenizers for all patterns and all ways to number tokens, once for all tests of this room."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from jaxlm.interop import byte_alphabet
from jaxlm.tokenizer import Tokenizer, train_tokenizer

os.environ["TIKTOKEN_CACHE_DIR"] = ""  # else tiktoken gives the first content of a path for ever

SPECIAL = ("<|endoftext|>", "<|user turn|>", "你好!", "ab<|x|>")


@pytest.fixture(scope="session")
def stdlib_texts() -> list[str]:
    """Some of the standard library's source, and a text of many scripts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_bytes().decode() for name in ("json", "email") for path in sorted((root / name).glob("*.py"))]
    return [
        *texts,
        "It's HE'LL naïve café e\u0301 Привет, мир! 你好,世界 안녕하세요 \U0001f600\u200d\r\n \u00a0 12 345 6789 ²\n\n" * 20,
    ]


@pytest.fixture(scope="session", params=("gpt2", "cl100k", "cl100k_base", "o200k"))
def trained(request: pytest.FixtureRequest, stdlib_texts: list[str]) -> Tokenizer:
    """A tokenizer of 900 ids, for each pattern."""
    return train_tokenizer(stdlib_texts, vocab_size=900, pattern=request.param, special_tokens=SPECIAL)


def numbered(tok: Tokenizer) -> dict[str, Tokenizer]:
    """The same merges in other numbers: GPT-2's order of bytes, special tokens first, and numbers with gaps."""
    merges, count = tok.merges, len(tok.merges)
    order = sorted(range(256), key=lambda byte: byte_alphabet.CHARACTERS[byte])
    gpt2 = [order.index(byte) for byte in range(256)] + list(range(256, 256 + count))
    first = [*range(len(SPECIAL), 256 + count + len(SPECIAL))]
    gaps = [*(1000 - 3 * byte for byte in range(256)), *range(2000, 2000 + 7 * count, 7)]
    return {
        "plain": tok,
        "gpt2": Tokenizer(merges, SPECIAL, tok.pattern, ids=gpt2),
        "first": Tokenizer(merges, {text: number for number, text in enumerate(SPECIAL)}, tok.pattern, ids=first),
        "gaps": Tokenizer(merges, dict(zip(SPECIAL, (1002, 9999, 0, 2001), strict=True)), tok.pattern, ids=gaps),
    }


@pytest.fixture(scope="session")
def layouts(trained: Tokenizer) -> dict[str, Tokenizer]:
    """`trained` in all ways to number its tokens."""
    return numbered(trained)


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """A tokenizer made by hand, in numbers with gaps, whose files can be damaged byte by byte."""
    merges = [(b"a", b"b"), (b" ", b"a"), (b"ab", b"c"), (b"#", b" "), (b"\xc3", b"\xa9"), (b" ", b"ab"), (b"ab", b"ab")]
    ids = [*range(2, 258), *range(300, 307)]
    return Tokenizer(merges, {"<|endoftext|>": 0, "<|x|>": 400}, "gpt2", ids=ids)
