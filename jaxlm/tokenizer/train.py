"""From texts to a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxlm.config.schema import TokenizerConfig
from jaxlm.contract import InputError
from jaxlm.tokenizer.choosing import thread_count
from jaxlm.tokenizer.corpus import Corpus
from jaxlm.tokenizer.definition import require_learned
from jaxlm.tokenizer.progress import Progress
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
    threads: int | None = None,
    progress: bool = False,
) -> Tokenizer:
    """Train byte-level BPE on `texts` (an iterable of str, read once, as it is needed).

    vocab_size: ids in all. ties: see `learn_merges`. max_bytes: bytes of text to train on, 0 for all. threads: that count
    pre-tokens; None: one for each processor, up to 8. progress: show bars, where standard error is a terminal.
    The order of the texts does not matter, but where max_bytes leaves some of them out; nor do the threads.
    Raises InputError for an empty corpus, one too small for the vocabulary, or a vocabulary too small for bytes and specials;
    ContractError where merges of some of the words come out as others than by the definition.
    """
    if isinstance(texts, str):
        raise ValueError("texts: expected an iterable of str, found one str; put it into a list")
    return _train(
        lambda corpus: corpus.of_texts(texts), 0, vocab_size, special_tokens, pattern, ties, max_bytes, threads, progress
    )


def train_tokenizer_from_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
    ties: Ties = "bytes",
    max_bytes: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Tokenizer:
    """`train_tokenizer` on plain UTF-8 files of any size, in which special tokens separate documents.

    Files are read in blocks, and their bytes are taken as they are, line ends too. Raises as `train_tokenizer` does, and
    InputError for a file that cannot be read, or is not UTF-8, with the place.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise ValueError(f"paths: expected a list of paths, found one, {os.fspath(paths)!r}; put it into a list")
    paths = list(paths)
    total = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    size = min(total, max_bytes) if max_bytes else total
    return _train(
        lambda corpus: corpus.of_files(paths), size, vocab_size, special_tokens, pattern, ties, max_bytes, threads, progress
    )


def _train(
    read: Callable[[Corpus], Iterator[bytes]],
    size: int,
    vocab_size: int,
    special_tokens: Sequence[str],
    pattern: str,
    ties: Ties,
    max_bytes: int,
    threads: int | None,
    progress: bool,
) -> Tokenizer:
    """read: gives what there is to take. size: bytes of it, 0 where that is not known."""
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool):
        raise TypeError(f"vocab_size: expected an integer, found {vocab_size!r}")
    wanted = vocab_size - 256 - len(special_tokens)
    if wanted < 0:
        least = 256 + len(special_tokens)
        raise InputError(
            f"--tokenizer.vocab-size: expected >= {least} (256 bytes and {len(special_tokens)} special tokens), "
            f"found {vocab_size}"
        )
    if max_bytes < 0:
        raise ValueError(f"max_bytes: expected a number of bytes, or 0 for all, found {max_bytes}")
    if ties not in ("bytes", "ids"):
        raise ValueError(f"ties: expected 'bytes' or 'ids', found {ties!r}")
    thread_count(threads)  # checks it before the work
    empty = Tokenizer((), special_tokens, pattern)  # checks pattern and special tokens before the work
    corpus = Corpus(empty.special_tokens, max_bytes=max_bytes)
    with Progress(progress) as bars:
        counts = count_pretokens(
            read(corpus),
            pattern=pattern,
            special_tokens=empty.special_tokens,
            threads=threads,
            advance=bars.stage("Counting pre-tokens", "MB", total=size, scale=1_000_000),
        )
        if not counts:
            raise InputError("expected text to train a tokenizer on, found an empty corpus; check --data.source")
        provenance = {
            "ties": ties,
            "documents": corpus.documents,
            "bytes": corpus.bytes,
            "pretokens": counts.total(),
            "distinct_pretokens": len(counts),
        }
        require_learned(counts, learn_merges, ties=ties)
        merges = learn_merges(counts, wanted, ties=ties, advance=bars.stage("Merging pairs", "merges", total=wanted))
    if len(merges) < wanted:
        raise InputError(
            f"--tokenizer.vocab-size: expected text that supports {wanted} merges, found {corpus.bytes} bytes that support "
            f"{len(merges)}; train on more text, or ask for at most {vocab_size - wanted + len(merges)}"
        )
    return Tokenizer(merges, special_tokens, pattern, provenance=provenance)


def train_from_config(texts: Iterable[str], cfg: TokenizerConfig, *, progress: bool = False) -> Tokenizer:
    """`train_tokenizer` with the options of a config."""
    return train_tokenizer(
        texts,
        vocab_size=cfg.vocab_size,
        special_tokens=cfg.special_tokens,
        pattern=cfg.pattern,
        ties=cfg.ties,
        max_bytes=cfg.train_bytes,
        progress=progress,
    )
