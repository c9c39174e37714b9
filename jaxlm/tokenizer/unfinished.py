"""Which pre-tokens of a text are the same however the text goes on, and how to scan on within one that is not finished.

A pre-token is final if finding it took no look at the end of what is known. Words, numbers and symbols take a look at what
follows them, at most three characters (a contraction). Three kinds look further:

- a run of white space takes a look at what ends it; in all patterns but GPT-2's a line end there may make it all one pre-token;
- in o200k, capitals after a word without small letters that ends in a caseless letter or a mark ("中ABC") go to it if a small
  letter follows them;
- cl100k_base asks whether the text ends, in white space alone.

Of a pre-token that is not final, some part is certain to be in it. It may be dropped from the front (its tokens may be known,
see `settled`), if a few characters, the context, stand in for it: the pattern finds in context and rest the same ends as in the
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jaxlm.tokenizer.boundaries import MASKS, boundaries
from jaxlm.tokenizer.pretoken import compiled
from jaxlm.tokenizer.unicode import CASELESS, LOWER, MARK, NEWLINE, NUMBER, SPACE, UPPER, classes, code_points, represent

LOOK = 3  # characters that a pre-token may look at beyond its end

_WORD, _NUMBERS, _SYMBOLS, _WHITE = range(4)


@dataclass(frozen=True)
class Unfinished:
    """A text that goes on, or ends here, from the begin of a pre-token.

    ends: where the final pre-tokens end, int64. sure: up to where the next pre-token is sure to reach, if it is longer than
    `LOOK` characters.
    """

    pattern: str
    ends: np.ndarray
    sure: int
    _classes: np.ndarray

    @classmethod
    def of(cls, text: str, pattern: str) -> Unfinished:
        """text: not empty. pattern: a name in `PATTERNS`."""
        codes = code_points(text)
        kinds = classes()[codes]
        starts = _starts(text, codes, kinds, pattern)
        ends = np.append(starts[1:], len(text))
        count = int(np.searchsorted(ends, len(text) - LOOK, side="right"))
        count = min(count, int(np.searchsorted(starts, _run_start(kinds, (SPACE, NEWLINE)))))
        if pattern == "o200k":
            capitals = _run_start(kinds, (UPPER,))
            last = int(np.searchsorted(ends, capitals))  # the pre-token that ends where they begin
            if 0 < capitals < len(text) and last < count:
                word = kinds[starts[last] : capitals]
                if word[-1] in (CASELESS, MARK) and LOWER not in word:
                    count = last
        begin, end = int(starts[count]), int(ends[count])
        if _kind(kinds[begin:end], pattern) == _WHITE:
            lines = np.flatnonzero((kinds[begin:end] == NEWLINE) & (pattern != "gpt2"))
            end = begin + int(lines[-1]) + 1 if len(lines) else end - 1
        return cls(pattern, ends[:count], end, kinds)

    @property
    def begin(self) -> int:
        """Where the pre-token begins that is not final."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def parts(self) -> list[tuple[int, int]]:
        """Begins and ends of texts that are, together, the final pre-tokens, and that give them if each is split alone.

        All up to the last one that is not white, and each that is; for white space at its end is not split as in a text.
        """
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])
        last = len(self.ends)
        while last and bool((self._classes[starts[last - 1] : starts[last]] >= SPACE).all()):
            last -= 1
        places = [*([0] if last else []), *starts[last:].tolist()]
        return list(pairwise(places))

    def context(self, place: int) -> str:
        """What stands in for the text of the pre-token that is not final up to `place`, which is in it, not at its end."""
        kinds = self._classes[self.begin : place]
        kind = _kind(self._classes[self.begin : self.sure], self.pattern)
        if kind == _WORD:
            return "A" if self.pattern == "o200k" and LOWER not in kinds else "a"
        if kind == _SYMBOLS:  # two: one may open a word; and in o200k a line end ends all but line ends and slashes
            return "..\n" if NEWLINE in kinds else ".."
        return "1" if kind == _NUMBERS else "\t"


def _starts(text: str, codes: np.ndarray, kinds: np.ndarray, pattern: str) -> np.ndarray:
    if pattern in MASKS:
        return np.flatnonzero(boundaries(codes, kinds, pattern))
    return np.array([match.start() for match in compiled(pattern).finditer(represent(text))], np.int64)


def _run_start(kinds: np.ndarray, run: tuple[int, ...]) -> int:
    """Where the run of these classes begins that the text ends with."""
    others = np.flatnonzero(~np.isin(kinds, run))
    return int(others[-1]) + 1 if len(others) else 0


def _kind(kinds: np.ndarray, pattern: str) -> int:
    """Of a pre-token, by its second character: the first may be a prefix. For one of a single character it is no matter."""
    if len(kinds) < 2:
        return _WHITE if kinds[0] >= SPACE else _SYMBOLS
    first, second = int(kinds[0]), int(kinds[1])
    if second in (UPPER, LOWER, CASELESS) or (second == MARK and pattern == "o200k"):
        return _WORD
    if second == NUMBER:
        return _NUMBERS
    return _WHITE if first >= SPACE and second >= SPACE else _SYMBOLS
