"""Text to tokens in Python and NumPy: for short texts, and where there is no numba."""

from __future__ import annotations

import os
import threading
import weakref

import numpy as np

from jaxlm.tokenizer.boundaries import MASKS, boundaries
from jaxlm.tokenizer.merging import SCAN, merge
from jaxlm.tokenizer.pairs import merge_many, pair_table, spread
from jaxlm.tokenizer.pretoken import compiled, pieces, split
from jaxlm.tokenizer.remembered import SHORT, Remembered, distinct, keys_of
from jaxlm.tokenizer.unicode import classes, code_points, represent
from jaxlm.tokenizer.vocabulary import Vocabulary

CACHE = 1 << 18  # pre-tokens whose ids are remembered
REMEMBERED = 256  # characters of a pre-token up to which it is: long ones are rare, and would fill the memory
LONG = 3072  # characters of a text from which arrays beat a loop
MANY = 1 << 17  # characters in long texts after which arrays' tables are made: what that takes, the loop took so far
PIECE = 1 << 17  # characters that are encoded at once: the arrays stay in the processor's cache
BLOCK = 1 << 13  # pre-tokens that are looked up at once, for the same reason


class Portable:
    """The pre-tokens of a text, and the ids of each, which are remembered. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, pattern: str):
        self._vocabulary, self._pattern = vocabulary, pattern
        self._numbers: list[int] = vocabulary.ids.tolist()
        self._known: dict[str, tuple[int, ...]] = {}
        self._arrays: _Arrays | None = None
        self._seen = 0  # characters in long texts
        self._lock = threading.Lock()  # of the arrays: one thread at a time uses them, in a third of the time of the loop
        _ALL.add(self)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text without special tokens, int32. Raises UnicodeEncodeError for a lone surrogate."""
        if len(text) < LONG:
            return self._in_a_loop(text)
        text.encode()  # raises before any work
        with self._lock:
            self._seen += len(text)
            if self._arrays is None and self._seen >= MANY:
                self._arrays = _Arrays(self._vocabulary, self._pattern)
            if self._arrays is not None:
                return np.concatenate([self._arrays.encode(piece) for piece in pieces((text,), size=PIECE)])
        return self._in_a_loop(text)

    def _in_child(self) -> None:
        """After a fork: if another thread had the lock, nobody gives it back, and the arrays are half changed."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock, self._arrays = threading.Lock(), None

    def _in_a_loop(self, text: str) -> np.ndarray:
        ids: list[int] = []
        for pretoken in split(text, self._pattern):
            known = self._known.get(pretoken)
            ids.extend(self._ids(pretoken) if known is None else known)
        return np.array(ids, np.int32)

    def _ids(self, pretoken: str) -> tuple[int, ...]:
        tokens = merge(list(pretoken.encode()), self._vocabulary.product)
        ids = tuple([self._numbers[token] for token in tokens])
        if len(pretoken) < REMEMBERED:
            if len(self._known) >= CACHE:
                self._known.clear()
            self._known[pretoken] = ids
        return ids


_ALL: weakref.WeakSet[Portable] = weakref.WeakSet()


def _in_child() -> None:
    for portable in _ALL:
        portable._in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Arrays:
    """The same over arrays. All ids that are known stand in one array, in which a pre-token has a place and a count."""

    def __init__(self, vocabulary: Vocabulary, pattern: str):
        self._product, self._outside, self._pattern = vocabulary.product, vocabulary.ids, pattern
        self._table = pair_table(vocabulary.product)
        self._forget()

    def _forget(self) -> None:
        self._short, self._long = Remembered(2 * CACHE), dict[bytes, int]()
        self._ids, self._used = np.empty(1 << 14, np.int32), 0

    def encode(self, text: str) -> np.ndarray:
        """Ids of a piece of text."""
        if self._short.size >= 2 * CACHE or len(self._long) >= CACHE or self._used > 16 * CACHE:
            self._forget()
        raw = text.encode()
        starts = _starts(text, len(raw), self._pattern)
        lengths = np.diff(starts, append=len(raw))
        numbers = np.empty(len(starts), np.int64)
        short = lengths <= SHORT
        if short.all():
            numbers = self._of_short(raw, starts, lengths)
        else:
            numbers[short] = self._of_short(raw, starts[short], lengths[short])
            numbers[~short] = self._of_long(raw, starts[~short], lengths[~short])
        blocks = (numbers[i : i + BLOCK] for i in range(0, len(numbers), BLOCK))
        return np.concatenate([np.take(self._ids, spread(block >> 32, block & 0xFFFFFFFF)) for block in blocks])

    def _of_short(self, raw: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Place << 32 | count for each pre-token of at most SHORT bytes."""
        numbers = np.empty(len(starts), np.int64)
        unknown = [np.zeros(0, np.int64)]  # of each block the first of those that are alike
        alike: list[tuple[np.ndarray, np.ndarray]] = []  # those that are not known, and which of `unknown` they are like
        count = 0
        for i in range(0, len(starts), BLOCK):
            keys = keys_of(raw, starts[i : i + BLOCK], lengths[i : i + BLOCK])
            numbers[i : i + BLOCK] = found = self._short.numbers(keys)
            if len(new := np.flatnonzero(found == 0)):
                first, which = distinct(keys[new])
                unknown.append(i + new[first])
                alike.append((i + new, count + which))
                count += len(first)
        if count:
            some = np.concatenate(unknown)
            keys = keys_of(raw, starts[some], lengths[some])
            first, which = distinct(keys)
            made = self._merged(raw, starts[some[first]], lengths[some[first]])
            self._short.add(keys[first], made)
            for those, like in alike:
                numbers[those] = made[which[like]]
        return numbers

    def _of_long(self, raw: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The same for longer ones."""
        words = [raw[start : start + n] for start, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
        known = {word: self._long.get(word, 0) for word in words}
        new = [word for word, number in known.items() if not number]
        if together := [word for word in new if len(word) <= SCAN]:
            each = np.array([len(word) for word in together])
            known.update(zip(together, self._merged(b"".join(together), np.cumsum(each) - each, each).tolist(), strict=True))
        for word in new:
            if len(word) > SCAN:
                tokens = np.array(merge(list(word), self._product), np.int32)
                known[word] = int(self._placed(tokens, np.array([len(tokens)]))[0])
            if len(word) < REMEMBERED and len(self._long) < CACHE:
                self._long[word] = known[word]
        return np.array([known[word] for word in words])

    def _merged(self, raw: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        tokens = np.frombuffer(raw, np.uint8)[spread(starts, lengths)].astype(np.int32)
        return self._placed(*merge_many(tokens, lengths, self._table, self._product))

    def _placed(self, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Append ids of pre-tokens, and say where they are."""
        end = self._used + len(tokens)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, np.int32)])
        self._ids[self._used : end] = self._outside[tokens]
        places = self._used + np.cumsum(counts) - counts
        self._used = end
        return places << 32 | counts


def _starts(text: str, size: int, pattern: str) -> np.ndarray:
    """Where in the UTF-8 of `text`, which has `size` bytes, pre-tokens begin; int64."""
    ascii_only = size == len(text)
    codes = np.frombuffer(text.encode(), np.uint8) if ascii_only else code_points(text)
    if pattern in MASKS:
        at = np.flatnonzero(boundaries(codes, np.take(classes(), codes), pattern))
    else:
        at = np.array([match.start() for match in compiled(pattern).finditer(represent(text))])
    if ascii_only:
        return at
    widths = 1 + (codes >= 0x80).astype(np.uint8) + (codes >= 0x800) + (codes >= 0x10000)
    return (np.cumsum(widths, dtype=np.int64) - widths)[at]
