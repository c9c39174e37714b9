"""From texts to a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxlm.config.schema import TokenizerConfig
from jaxlm.contract import InputError
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.training import Ties, count_pretokens, learn_merges


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
    ties: Ties = "bytes",
    max_bytes: int = 0,
) -> Tokenizer:
    """Train byte-level BPE on `texts` (an iterable of str, read once).

    vocab_size: ids in all. ties: see `learn_merges`. max_bytes: bytes of text to train on, 0 for all.
    The order of the texts does not matter, but where max_bytes leaves some of them out.
    Raises InputError for an empty corpus, one too small for the vocabulary, or a vocabulary too small for bytes and specials.
    """
    if isinstance(texts, str):
        raise ValueError("texts: expected an iterable of str, found one str; put it into a list")
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool):
        raise TypeError(f"vocab_size: expected an integer, found {vocab_size!r}")
    wanted = vocab_size - 256 - len(special_tokens)
    if wanted < 0:
        least = 256 + len(special_tokens)
        raise InputError(
            f"--tokenizer.vocab-size: expected >= {least} (256 bytes and {len(special_tokens)} special tokens), "
            f"found {vocab_size}"
        )
    if ties not in ("bytes", "ids"):
        raise ValueError(f"ties: expected 'bytes' or 'ids', found {ties!r}")
    empty = Tokenizer((), special_tokens, pattern)  # checks pattern and special tokens before the work
    corpus = count_pretokens(texts, pattern=pattern, special_tokens=empty.special_tokens, max_bytes=max_bytes)
    if not corpus.counts:
        raise InputError("expected text to train a tokenizer on, found an empty corpus; check --data.source")
    merges = learn_merges(corpus.counts, wanted, ties=ties)
    if len(merges) < wanted:
        raise InputError(
            f"--tokenizer.vocab-size: expected text that supports {wanted} merges, found {corpus.bytes} bytes that support "
            f"{len(merges)}; train on more text, or ask for at most {vocab_size - wanted + len(merges)}"
        )
    provenance = {
        "ties": ties,
        "documents": corpus.documents,
        "bytes": corpus.bytes,
        "pretokens": corpus.counts.total(),
        "distinct_pretokens": len(corpus.counts),
    }
    return Tokenizer(merges, special_tokens, pattern, provenance=provenance)


def train_from_config(texts: Iterable[str], cfg: TokenizerConfig) -> Tokenizer:
    """`train_tokenizer` with the options of a config."""
    return train_tokenizer(
        texts,
        vocab_size=cfg.vocab_size,
        special_tokens=cfg.special_tokens,
        pattern=cfg.pattern,
        ties=cfg.ties,
        max_bytes=cfg.train_bytes,
    )
