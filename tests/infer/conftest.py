"""A tiny drawn model, a tokenizer that cuts characters apart, and a model that continues ids as it is told."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.infer import Engine
from jaxlm.model import init_params
from jaxlm.tokenizer import Tokenizer

SPECIALS = ("<|endoftext|>", "<|user|>")


@pytest.fixture(scope="session")
def tok():
    """262 ids: bytes, four merges of ASCII, two special tokens; é, € and 😀 take one id a byte."""
    return Tokenizer.from_merges([(b"a", b"b"), (b"ab", b"c"), (b"S", b"T"), (b" ", b"x")], SPECIALS)


@pytest.fixture(scope="session")
def cfg(tok):
    """Grouped heads, a window, an untied head: logits far enough apart for equal argmax."""
    return ModelConfig(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, context_length=64, vocab_size=tok.vocab_size,
        vocab_multiple=8, window=20, tie_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def params(cfg):
    """Parameters whose logits are a few units wide."""
    params = init_params(cfg, jax.random.key(0))
    return dataclasses.replace(params, embed=params.embed * 50, head=params.head * 50)


@pytest.fixture(scope="session")
def engine(params, cfg, tok):
    return Engine(params, cfg, tok)


@pytest.fixture(scope="session")
def chain(tok):
    """An engine that draws the given ids after BOS at temperature 0, then EOS; ids that do not repeat.

    Its blocks add nothing, its embedding is one-hot, so its head is the table of what follows what.
    """
    width = tok.vocab_size
    cfg = ModelConfig(
        d_model=width, n_layers=1, n_heads=1, head_dim=2, d_ff=2, context_length=64, vocab_size=width, vocab_multiple=1,
        norm="none", ffn="silu", tie_embeddings=False,
    )  # fmt: skip
    silent = jax.tree.map(jnp.zeros_like, init_params(cfg, jax.random.key(0)))

    def make(ids, *, broken_at=None):
        assert len(set(ids)) == len(ids)
        head, embed = np.zeros((width, width), np.float32), np.eye(width, dtype=np.float32)
        for before, after in zip([tok.bos_id, *ids], [*ids, tok.eos_id], strict=True):
            head[after, before] = 10.0
        if broken_at is not None:
            embed[broken_at] = np.nan
        return Engine(dataclasses.replace(silent, embed=jnp.asarray(embed), head=jnp.asarray(head)), cfg, tok)

    return make
