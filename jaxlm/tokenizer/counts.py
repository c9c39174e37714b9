"""How often each pre-token occurs, in three arrays: a dictionary of the same would take ten times the memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """N different pre-tokens. text: their bytes, one after the other, uint8. ends: where each ends in it, int64 [N].
    counts: how often each occurs, int64 [N]. The order has no meaning."""

    text: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counts: Mapping[bytes, int]) -> Counts:
        """Those of a dictionary. Raises OverflowError for a count that no int64 holds."""
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        numbers = np.array(list(counts.values()), np.int64)
        return cls(np.frombuffer(b"".join(counts), np.uint8), np.cumsum(lengths), numbers)

    def counter(self) -> Counter[bytes]:
        """As a dictionary."""
        text, ends = self.text.tobytes(), self.ends.tolist()
        return Counter({text[a:b]: n for a, b, n in zip([0, *ends], ends, self.counts.tolist(), strict=False)})

    def total(self) -> int:
        """Pre-tokens in all."""
        return int(self.counts.sum())

    def __len__(self) -> int:
        return len(self.ends)
