"""The one merge that can ever make a token: the last one when the token's own bytes are merged.

Merging takes the pair of lowest rank, the leftmost of equals. While two tokens a and b stand side by side in a text, nothing
has been merged across their outer borders or between them, so what happened to their bytes is what happens to the bytes of
a + b alone. So a pair that is not the last step of merging its own bytes never stands side by side in any text, and its merge
changes no ids. This recovers merges from ranks, and tells merges that count from those that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

Rank = Callable[[bytes, bytes], int | None]
Merge = tuple[bytes, bytes]


def merged(token: bytes, rank: Rank) -> tuple[list[bytes], Merge | None]:
    """What merging the bytes of `token` ends with, and the last merge; None where there is none.

    rank: of a merge of two neighbours, None for one that is not made.
    """
    parts = [bytes([byte]) for byte in token]
    ranks = [rank(a, b) for a, b in pairwise(parts)]
    last: Merge | None = None
    while len(parts) > 1:
        lowest = min((r for r in ranks if r is not None), default=None)
        if lowest is None:
            break
        at = ranks.index(lowest)
        last = parts[at], parts[at + 1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del ranks[at]
        if at > 0:
            ranks[at - 1] = rank(parts[at - 1], parts[at])
        if at < len(ranks):
            ranks[at] = rank(parts[at], parts[at + 1])
    return parts, last


def parts_by_rank(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What the bytes of `token` are merged to by the tokens of lower rank. ranks: of tokens, whatever parts make them.

    Two parts are the only merge that can make it; another number of them means that its rank says nothing of its merge.
    """
    below = ranks[token]

    def rank(a: bytes, b: bytes) -> int | None:
        found = ranks.get(a + b)
        return found if found is not None and found < below else None

    return merged(token, rank)[0]


def first_broken(tokens: Iterable[bytes], merges: Sequence[Merge]) -> tuple[bytes, list[bytes]] | None:
    """The first of `tokens` that merging its own bytes does not give alone, with what it gives; None where there is none."""
    rank = _ranks(merges)
    for token in tokens:
        parts, _ = merged(token, rank)
        if len(parts) != 1:
            return token, parts
    return None


def without_idle(merges: Sequence[Merge], *, keep: Callable[[int, Merge], bool]) -> list[Merge]:
    """`merges` without those that never happen in any text. keep: of rank and merge, which ones to leave in without asking."""
    rank = _ranks(merges)
    return [merge for at, merge in enumerate(merges) if keep(at, merge) or merged(merge[0] + merge[1], rank)[1] == merge]


def _ranks(merges: Sequence[Merge]) -> Rank:
    ranks = {merge: at for at, merge in enumerate(merges)}
    return lambda a, b: ranks.get((a, b))
