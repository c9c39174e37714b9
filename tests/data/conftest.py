"""A small tokenizer, and a stream of random documents in memory, for all tests of this room."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.data import TokenStream
from jaxlm.tokenizer import Tokenizer, train_tokenizer

TEXTS = [f"{'ab' * (i % 7)} the {i}th text, {i * i} naïve words: 你好 \U0001f600\n" * (3 + i % 5) for i in range(60)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty texts, all different."""
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer(texts) -> Tokenizer:
    """A tokenizer of 300 ids."""
    return train_tokenizer(texts, vocab_size=300)


@pytest.fixture(scope="session")
def make_stream():
    """make_stream(lengths, *, shards, seed): documents of so many ids (0..99) each, in so many files."""

    def make(lengths: list[int], *, shards: int = 1, seed: int = 0) -> TokenStream:
        starts = np.cumsum([0, *lengths])
        ids = np.random.default_rng(seed).integers(0, 100, starts[-1]).astype("<u2")
        groups = np.array_split(np.arange(len(lengths)), min(shards, len(lengths)))
        offsets = np.array([starts[group[0]] for group in groups])
        return TokenStream(tuple(np.split(ids, offsets[1:])), offsets, starts)

    return make
