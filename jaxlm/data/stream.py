"""One split as one virtual array of ids, whatever files it lies in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenStream:
    """One split as one virtual array of ids. starts: int64 [documents + 1], the first token of each document, and the end."""

    shards: tuple[np.ndarray, ...]
    offsets: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1

    def slice(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin .. end - 1, int32, cut at the end of the stream."""
        begin, end = max(begin, 0), min(end, len(self))
        parts = [np.zeros(0, np.int32)]
        first = int(np.searchsorted(self.offsets, begin, "right")) - 1
        for shard, offset in zip(self.shards[first:], self.offsets[first:], strict=False):
            if offset >= end:
                break
            parts.append(shard[max(begin - offset, 0) : end - offset].astype(np.int32))
        return np.concatenate(parts)

    def document(self, index: int) -> np.ndarray:
        """The ids of a document, int32, with its BOS and EOS."""
        return self.slice(int(self.starts[index]), int(self.starts[index + 1]))

    def rows(self, context_length: int) -> int:
        """Rows of `context_length` positions, the last one possibly padded."""
        return max(0, -(-(len(self) - 1) // context_length))
