"""Learning the merges: count pre-tokens, then merge the most frequent pair of neighbours, again and again.

The result is a function of the multiset of pre-tokens: the order and the cutting of the texts do not matter.
Source: Sennrich et al. 2016, algorithm 1; over bytes, Radford et al. 2019, section 2.2.

Both halves exist twice, in Python and compiled, with the same results.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Literal

import numpy as np

from jaxlm.tokenizer.choosing import COMPILE_BYTES, READY_BYTES, TRAINING, Choice, thread_count
from jaxlm.tokenizer.counts import Counts
from jaxlm.tokenizer.definition import NUMBERED
from jaxlm.tokenizer.learning import learned
from jaxlm.tokenizer.merging import Pair
from jaxlm.tokenizer.pretoken import special_pattern, split

Ties = Literal["bytes", "ids"]
Advance = Callable[[int], None]

BATCH = 1 << 20  # bytes of text that a thread counts at once


def count_pretokens(
    pieces: Iterable[bytes],
    *,
    pattern: str,
    special_tokens: tuple[str, ...],
    threads: int | None = None,
    engine: Choice = "auto",
    advance: Advance = lambda amount: None,
) -> Counter[bytes] | Counts:
    """How often each pre-token occurs. Special tokens in the pieces separate, and are not counted.

    pieces: texts as UTF-8, read as they are needed. threads: that count at once where the code is compiled; None: one for each
    processor, up to 8. engine: "auto" chooses by the size. advance: is told of bytes done.
    Raises UnicodeDecodeError for what is no UTF-8.
    """
    if engine == "auto":
        pieces, engine = _chosen(iter(pieces))
    if engine == "compiled":
        return _count_compiled(pieces, pattern, special_tokens, thread_count(threads), advance)
    specials = special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    for piece in pieces:
        text = piece.decode()
        for part in specials.split(text) if specials else (text,):
            counts.update(split(part, pattern))
        advance(len(piece))
    return Counter({pretoken.encode(): count for pretoken, count in counts.items()})


def learn_merges(
    counts: Mapping[bytes, int] | Counts,
    wanted: int,
    *,
    ties: Ties = "bytes",
    engine: Choice = "auto",
    advance: Advance = lambda amount: None,
) -> list[tuple[bytes, bytes]]:
    """The first `wanted` merges, or as many as the counts support. counts: pre-token -> how often it occurs.

    The most frequent pair of neighbours is merged; ties: of equally frequent ones "bytes" takes the pair of byte strings that
    is greatest, "ids" the pair of ids that is smallest, with bytes and merges numbered as Hugging Face's `tokenizers` numbers
    them. In "aaa" the pair (a, a) counts twice, and is merged once, on the left.
    advance: is told of merges made. Raises InputError for 2^31 bytes of different pre-tokens or more.
    """
    if engine == "auto":
        size = len(counts.text) if isinstance(counts, Counts) else sum(map(len, counts))
        # Who has counted in compiled code has paid for it.
        engine = "compiled" if isinstance(counts, Counts) or TRAINING.are_worth(size) else "portable"
    if ties == "ids":
        counts = _numbered(counts)
    text = [bytes([byte]) for byte in NUMBERED[ties]]
    known = set(text)
    merges: list[tuple[bytes, bytes]] = []
    wanted = min(wanted, _most(counts))
    for first, second in _learned(counts, wanted, ties == "bytes", engine):
        a, b = text[first], text[second]
        # A pair that stands side by side has been merged everywhere, so the same bytes cannot come from two other parts later.
        if a + b in known:
            raise AssertionError(f"merge {len(merges)} of {a!r} and {b!r} makes a token that exists")
        known.add(a + b)
        text.append(a + b)
        merges.append((a, b))
        advance(1)
    return merges


def _numbered(counts: Mapping[bytes, int] | Counts) -> Mapping[bytes, int] | Counts:
    """The same with the number that each byte has among ids in its place."""
    numbers = bytes.maketrans(NUMBERED["ids"], bytes(range(256)))
    if isinstance(counts, Counts):
        return dataclasses.replace(counts, text=np.frombuffer(numbers, np.uint8)[counts.text])
    return {word.translate(numbers): count for word, count in counts.items()}


def _most(counts: Mapping[bytes, int] | Counts) -> int:
    """Merges that these words can give at most: each shortens one of them."""
    return (len(counts.text) if isinstance(counts, Counts) else sum(map(len, counts))) - len(counts)


def _chosen(pieces: Iterator[bytes]) -> tuple[Iterator[bytes], Choice]:
    """The pieces, and what is to count them; reads no more of them than it takes to know."""
    head: list[bytes] = []
    size = 0
    engine: Choice = "portable"
    for limit in (READY_BYTES, COMPILE_BYTES):
        while size < limit and (piece := next(pieces, None)) is not None:
            head.append(piece)
            size += len(piece)
        if TRAINING.are_worth(size):
            engine = "compiled"
            break
    return itertools.chain(_emptied(head), pieces), engine


def _emptied(pieces: list[bytes]) -> Iterator[bytes]:
    """The pieces, each forgotten as it is given."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


# ---- the compiled halves ---------------------------------------------------------------------------------------------


def _count_compiled(
    pieces: Iterable[bytes], pattern: str, special_tokens: tuple[str, ...], threads: int, advance: Advance
) -> Counts:
    TRAINING.require()
    from jaxlm.tokenizer.compiled.count import CountTable

    tables = [CountTable(pattern) for _ in range(threads)]
    batches = _batches(pieces, special_tokens)
    if threads == 1:
        for batch in batches:
            tables[0].add(batch)
            advance(sum(map(len, batch)))
        return tables[0].counts()

    free: SimpleQueue[CountTable] = SimpleQueue()
    for table in tables:
        free.put(table)

    def count(batch: list[bytes]) -> int:
        table = free.get()
        try:
            table.add(batch)
        finally:
            free.put(table)  # whatever happened: others wait for it
        return sum(map(len, batch))

    pending: deque[Future[int]] = deque()  # bounded, so that the texts are not all read at once
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            if len(pending) == 2 * threads:
                advance(pending.popleft().result())
            pending.append(pool.submit(count, batch))
        for future in pending:
            advance(future.result())
    whole = max(tables, key=len)
    tables.remove(whole)
    while tables:
        whole.merge(tables.pop())
    return whole.counts()


def _batches(pieces: Iterable[bytes], special_tokens: tuple[str, ...]) -> Iterator[list[bytes]]:
    """Pieces in lists of about `BATCH` bytes, a byte 0xFF for each special token."""
    raw = [token.encode() for token in sorted(special_tokens, key=len, reverse=True)]
    starts = {token[:2] for token in raw}
    finder = re.compile(b"|".join(map(re.escape, raw)))
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        piece.decode()  # compiled code trusts it: raises UnicodeDecodeError
        if any(start in piece for start in starts):
            piece = piece.replace(raw[0], b"\xff") if len(raw) == 1 else finder.sub(b"\xff", piece)
        batch.append(piece)
        size += len(piece)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _learned(counts: Mapping[bytes, int] | Counts, wanted: int, by_bytes: bool, engine: Choice) -> Iterator[Pair]:
    if engine == "portable":
        yield from learned(counts.counter() if isinstance(counts, Counts) else counts, wanted, by_bytes=by_bytes)
        return
    TRAINING.require()
    from jaxlm.tokenizer.compiled.learn import Learner

    learner = Learner(counts if isinstance(counts, Counts) else Counts.of(counts), wanted, by_bytes=by_bytes)
    for some in learner.merges():
        yield from map(tuple, some.tolist())
