"""Which tokens of a pre-token that goes on are final, whatever its further bytes are.

Merging takes the pair of lowest rank, the leftmost of equals. What happens in a stretch whose two borders are never merged
across is what would happen in the stretch alone, since the lowest of all pairs is the lowest of the stretch wherever it is in
it. Two things follow.

A run of final tokens, merged alone, gives itself.

If X is what P[:c] gives, Y what P[c:b] gives, and the last token x of X with the first token y of Y, merged alone, give x, y
again, then P[:b] gives X, Y. For up to the first merge across c both sides are merged as if they were alone; that merge joins
the end of x and the begin of y, and would be made in x, y alone as well.

Now let P be what has been read. Some final token ends at a place b among the last bytes of P: as many as the longest token has,
and P[b:] begins a token. What stands before b is what P[:b] gives. If for a place c before them, where a token of P ends, the
second statement holds with every such b, then the tokens of P before c are final.

Such a place is near: what a merge depends on to its right are merges of lower rank. It may be further away the more merges
there are that each wait for the next, but not further than all of them together are long.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.tokenizer.vocabulary import Vocabulary

LEAST = 32  # bytes that are always kept, so that contractions and prefixes of words are whole in them
TOGETHER = 64  # places that are tried at once

Merge = Callable[[Sequence[bytes]], list[np.ndarray]]


class Settled:
    """Final tokens of pre-tokens that go on. merge: tokens (numbers inside) of each of several pre-tokens."""

    def __init__(self, vocabulary: Vocabulary, merge: Merge):
        self._tokens, self._merge = vocabulary.tokens, merge
        self._in_order = sorted(vocabulary.tokens)
        self._lengths: np.ndarray = np.array([len(token) for token in vocabulary.tokens], np.int64)
        self.longest = int(self._lengths.max())  # bytes
        self._apart: dict[tuple[int, int], bool] = {}

    def tokens(self, read: bytes) -> tuple[np.ndarray, int]:
        """Tokens at the beginning of a pre-token that are final, and the bytes that they are made of.

        read: the bytes of it that are known; it ends with them or goes on. At least `LEAST` of them, and as many as the longest
        token has, are not in what is returned.
        """
        made = self._merge([read])[0]
        ends = np.cumsum(self._lengths[made])
        ways = self._ways(read)
        kept = max(LEAST, self.longest)
        while kept < len(read):
            count = int(np.searchsorted(ends, len(read) - kept, side="right"))
            if count == 0:
                break
            if self._is_border(int(made[count - 1]), read, int(ends[count - 1]), ways):
                return made[:count], int(ends[count - 1])
            kept *= 2
        return made[:0], 0

    def _ways(self, read: bytes) -> list[int]:
        """The places where the last token may end that is whole in `read`."""
        ways = [len(read)]
        for place in range(max(0, len(read) - self.longest + 1), len(read)):
            rest = read[place:]
            at = bisect.bisect_right(self._in_order, rest)
            if at < len(self._in_order) and self._in_order[at].startswith(rest):
                ways.append(place)
        return ways

    def _is_border(self, before: int, read: bytes, place: int, ways: list[int]) -> bool:
        """Whether token `before`, which ends at `place`, stays apart from what follows, whichever way it goes on."""
        for first in range(0, len(ways), TOGETHER):
            made = self._merge([read[place:way] for way in ways[first : first + TOGETHER]])
            if not all(self._are_apart(before, after) for after in {int(tokens[0]) for tokens in made}):
                return False
        return True

    def _are_apart(self, before: int, after: int) -> bool:
        pair = before, after
        if (known := self._apart.get(pair)) is None:
            if len(self._apart) >= 1 << 12:
                self._apart.clear()
            made = self._merge([self._tokens[before] + self._tokens[after]])[0]
            known = self._apart[pair] = made.tolist() == [before, after]
        return known
