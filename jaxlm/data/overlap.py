"""How much of the validation text stands in the training text, and how much of the training text stands there twice.

Text is compared in windows of as many ids as stand for some `WINDOW_BYTES` bytes, one from every place inside a document, by a
64-bit hash of the ids: about the 50 tokens of Lee et al. 2022 (arXiv:2107.06499), whatever the vocabulary. Which windows are
kept depends on the hash alone, those below a bound that halves when there are too many: equal windows are kept or dropped
together wherever they stand, so that shares of what is kept estimate shares of all. Memory is bounded, and one pass over the
ids of each split is enough.

The hash is a polynomial in a mixed value of each id, modulo 2**64 (Karp & Rabin 1987), mixed once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError, Manifest
from jaxlm.data.order import mix
from jaxlm.data.stream import TokenStream

WINDOW_BYTES = 128  # of text in a window, at least; phrases of fewer are common to texts that share nothing else
KEPT = 1 << 17  # distinct windows of a split, at most; a share is known to a few per mille of it
CHUNK = 1 << 16  # places hashed together
ENOUGH = 1000  # windows; a share of fewer says little
SAID = 0.01  # shares of at most this are not worth a line
BASE = 0x9E3779B97F4A7C15  # of the polynomial, odd


class Overlap(NamedTuple):
    """val_in_train: the share of the windows of validation that stand in training as well. train_repeated: the share of those
    of training that stand there at least twice. val_windows, train_windows: how many were compared."""

    val_in_train: float
    train_repeated: float
    val_windows: int
    train_windows: int


def window_of(tokens: int, size: int) -> int:
    """The ids of a window where `tokens` ids stand for `size` bytes: the least power of two that stands for `WINDOW_BYTES`."""
    return 1 << (-(-WINDOW_BYTES * tokens // max(size, 1)) - 1).bit_length()


def overlap(train: TokenStream, val: TokenStream, window: int) -> Overlap:
    """Compare the splits in windows of `window` ids, a power of two. Costs about 50 ns a token, and some 10 MB of memory."""
    ours, theirs = _kept(train, window), _kept(val, window)
    bound = min(ours.bound, theirs.bound)
    (seen, often), (asked, times) = ours.below(bound), theirs.below(bound)
    inside = int(times[np.isin(asked, seen, assume_unique=True)].sum())
    twice = int(often[often > 1].sum())
    of_val, of_train = int(times.sum()), int(often.sum())
    return Overlap(round(inside / max(of_val, 1), 6), round(twice / max(of_train, 1), 6), of_val, of_train)


def require_little_overlap(manifest: Manifest, cfg: DataConfig, *, artifact: Path) -> None:
    """Raise ContractError where the data's manifest states more overlap than the config allows.

    Shares of fewer than `ENOUGH` windows, and artifacts from before there was the fact, are not judged.
    """
    facts = manifest.facts.get("overlap")
    if facts is None:
        return
    for windows, share, most, flag, words, remedy in (
        ("val_windows", "val_in_train", cfg.max_overlap, "--data.max-overlap", "of the validation text in the training text",
         "Remove duplicates from the source, or split it so that copies fall on one side; this validation is no measure"),
        ("train_windows", "train_repeated", cfg.max_repeated, "--data.max-repeated", "of the training text there twice",
         "Remove duplicates from the source, which may have been given twice"),
    ):  # fmt: skip
        if facts[windows] >= ENOUGH and facts[share] > most:
            raise ContractError(
                "data",
                artifact=artifact,
                expected=f"at most {most:.0%} {words}, in windows of {facts['window']} ids",
                found=f"{facts[share]:.1%} of {facts[windows]:,} windows",
                remedy=f"{remedy}. If it is as it should be, allow it with {flag}.",
            )


def words_of(manifest: Manifest) -> list[str]:
    """A line for each share of the data's manifest that a person should know of, though the config allows it."""
    facts = manifest.facts.get("overlap") or {}
    said = (
        ("val_windows", "val_in_train", "of the validation text stands in the training text too"),
        ("train_windows", "train_repeated", "of the training text stands there twice"),
    )
    return [f"{facts[share]:.1%} {words}" for n, share, words in said if facts.get(n, 0) >= ENOUGH and facts[share] > SAID]


class _Kept:
    """Hashes below a bound with their counts, ascending; the bound halves where they become more than `KEPT`."""

    def __init__(self) -> None:
        self.bound = np.uint64(0xFFFFFFFFFFFFFFFF)
        self._hashes, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._waiting: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> None:
        self._waiting.append(hashes)
        if sum(map(len, self._waiting)) > KEPT:
            self._merge()

    def below(self, bound: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        """Hashes up to `bound`, and how often each came."""
        self._merge()
        return self._below(bound)

    def _below(self, bound: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        count = int(np.searchsorted(self._hashes, bound, "right"))
        return self._hashes[:count], self._counts[:count]

    def _merge(self) -> None:
        found, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._waiting]), return_counts=True)
        hashes = np.concatenate([self._hashes, found])
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], np.concatenate([self._counts, counts])[order]
        firsts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
        self._hashes, self._counts = hashes[firsts], np.add.reduceat(counts, firsts) if len(firsts) else counts
        self._waiting = []
        while len(self._hashes) > KEPT:
            self.bound >>= np.uint64(1)
            self._hashes, self._counts = self._below(self.bound)


def _kept(stream: TokenStream, window: int) -> _Kept:
    """The windows of a split."""
    kept = _Kept()
    values = np.zeros(0, np.uint64)
    for begin in range(0, max(len(stream) - window + 1, 0), CHUNK):
        ids = stream.slice(begin, begin + CHUNK + window - 1)
        if (most := int(ids.max())) >= len(values):
            values = mix(np.arange(1, most + 2, dtype=np.uint64))
        hashes = window_hashes(values[ids], window)
        places = np.flatnonzero(hashes <= kept.bound)
        # Inside a document: after its BOS, and before its EOS.
        document = np.searchsorted(stream.starts, begin + places, "right") - 1
        first, end = stream.starts[document], stream.starts[document + 1]
        inside = (begin + places > first) & (begin + places + window < end)
        kept.add(hashes[places[inside]])
    return kept


def window_hashes(values: np.ndarray, window: int) -> np.ndarray:
    """Hashes of all windows of `window` neighbours, uint64 [n - window + 1]. values: uint64 [n], of the ids, mixed.

    Of 2 w neighbours: hash(first w) * base**w + hash(last w).
    """
    hashes, width, power = values, 1, BASE
    while width < window:
        hashes = hashes[:-width] * np.uint64(power) + hashes[width:]
        width, power = 2 * width, power * power % (1 << 64)
    return mix(hashes)
