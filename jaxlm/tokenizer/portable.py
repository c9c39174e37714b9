"""Text to tokens in Python and NumPy: for short texts, and where there is no numba."""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.merging import merge
from jaxlm.tokenizer.pretoken import split
from jaxlm.tokenizer.vocabulary import Vocabulary

CACHE = 1 << 18  # pre-tokens whose ids are remembered
REMEMBERED = 256  # characters of a pre-token up to which it is: long ones are rare, and would fill the memory


class Portable:
    """The pre-tokens of a text, and the ids of each, which are remembered. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, pattern: str):
        self._vocabulary, self._pattern = vocabulary, pattern
        self._numbers: list[int] = vocabulary.ids.tolist()
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text without special tokens, int32. Raises UnicodeEncodeError for a lone surrogate."""
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
