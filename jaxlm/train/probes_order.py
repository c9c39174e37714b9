"""Probe of the order of the training rows: every row once an epoch, epochs in different orders, neighbours far apart.

Batches are asked of a stream whose ids are their own places, in rows of one token: a batch then says which rows it took,
whatever took them. Honest permutations fail with a probability below 1e-9, of any number of rows: every test is a bound that
holds for every size, not an approximation for large ones. With fewer than some 16 rows no order is so unlikely, and none is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxlm.data import TokenStream
from jaxlm.train.probes import Probe

LOOKED = 4096  # rows of an epoch that are looked at, at most
CALLS = 128  # batches of an epoch that are made for it, at most, or `LEAST` rows
LEAST = 512
PIECES, PIECE = 16, 64  # stretches of the first epoch, evenly spaced, in which no row may come again
SMALL = 1021  # rows of a small epoch that is looked at whole, where the run's is not
RARE = math.log(1e-11)  # of one test; there are fewer than 60

Take = Callable[[TokenStream, int, np.ndarray], np.ndarray]


class Places(TokenStream):
    """A stream of one document whose ids are their places. rows: of one token each."""

    def __init__(self, rows: int):
        super().__init__((), np.zeros(1, np.int64), np.array([0, rows + 1]))

    def slice(self, begin: int, end: int) -> np.ndarray:
        """Places begin .. end - 1, int32, cut at the end."""
        return np.arange(max(begin, 0), min(end, len(self)), dtype=np.int32)


def order(take: Take, *, rows: int, batch_size: int) -> Probe:
    """The rows of an epoch, `rows` in all, come in an order that looks random, each once, and in the next epoch in another.

    take: (stream, step, rows of the batch that are wanted) to the ids at which those rows begin, with rows of one token. It is
    asked for the first rows of two epochs, for some further on, and for a small epoch: some hundred batches, in less than a
    second.
    """
    size = min(rows, int(np.iinfo(np.int32).max) - 1)  # of more rows than an id can tell, as many as it can
    looked = min(size, LOOKED, max(LEAST, CALLS * batch_size))
    first, second = (_rows_of(take, size, batch_size, epoch * size + np.arange(looked)) for epoch in (0, 1))
    expected = "rows in a random order, each once an epoch, in another order the next"
    if lengths := [len(epoch) for epoch in (first, second) if len(epoch) != looked]:
        return Probe("order", False, expected, f"{lengths[0]} rows where {looked} were asked for")
    for wrong in (_repeated(take, size, batch_size, first), *_ordered(first, size), *_same(first, second, size)):
        if wrong:
            return Probe("order", False, expected, wrong)
    return Probe("order", True, expected, f"so with {looked} of {rows} rows in two epochs")


def _rows_of(take: Take, rows: int, batch_size: int, examples: np.ndarray) -> np.ndarray:
    """The rows that these examples of the endless sequence are, int64. examples: ascending."""
    stream, steps = Places(rows), examples // batch_size
    found = [take(stream, int(step), examples[steps == step] - step * batch_size) for step in np.unique(steps)]
    return np.concatenate(found).astype(np.int64)


def _repeated(take: Take, rows: int, batch_size: int, first: np.ndarray) -> str:
    """A row that comes twice in an epoch, or is none; empty where there is no such row."""
    taken = first
    if len(first) < rows:
        starts = [rows // 2, *np.linspace(len(first), max(rows - PIECE, 0), PIECES).astype(int)]
        further = np.unique([start + np.arange(PIECE) for start in starts])
        further = further[(further >= len(first)) & (further < rows)]
        taken = np.concatenate([first, _rows_of(take, rows, batch_size, further)])
        small = max(SMALL, batch_size)
        if small <= min(LOOKED, CALLS * batch_size):
            lost = np.setdiff1d(np.arange(small), _rows_of(take, small, batch_size, np.arange(small)))
            if lost.size:
                return f"{lost.size} of {small} rows that do not come in their epoch"
    if outside := np.count_nonzero((taken < 0) | (taken >= rows)):
        return f"{outside} rows outside 0..{rows - 1}"
    repeated = len(taken) - len(np.unique(taken))
    return f"{repeated} rows of {len(taken)} that come again in the same epoch" if repeated else ""


def _ordered(taken: np.ndarray, rows: int) -> Iterator[str]:
    """How the first rows of an epoch are less spread, or their neighbours closer, than those of a random order."""
    some = taken[: rows // 2]
    count = len(some)
    # Rows below a place: hypergeometric, whose tails are within the Chernoff bound of the binomial (Hoeffding 1963, theorem 4).
    for part in range(1, 16):
        below = part * rows // 16
        inside = int((some < below).sum())
        if max(_tail(inside, count, below / rows), _tail(count - inside, count, 1 - below / rows)) < 0:
            continue
        yield f"{inside} of the first {count} rows in the first {below} of {rows}"
    # Whatever came before, at most 2 w of the rows that are left, rows - count at least, lie within w of the last one.
    for part in (16, 256, 4096):
        width = rows // part
        near = int((np.abs(np.diff(some)) <= width).sum())
        if width and count > 1 and _tail(near, count - 1, 2 * width / (rows - count)) >= 0:
            yield f"{near} of the first {count} rows at most {width} rows after or before the last one"
    steps = np.diff(taken) % rows
    common, times = _most_common(steps)
    if _unlikely(times, len(steps), rows - 1, rows):
        yield f"a distance of {common} between {times + 1} of the first {len(taken)} rows and the next"


def _same(first: np.ndarray, second: np.ndarray, rows: int) -> Iterator[str]:
    """How the second epoch repeats the first one: in the same places, moved or turned round; or the same rows in succession."""
    for way, pairs in (("", second - first), ("from the end on, ", second + first)):
        shift, times = _most_common(pairs % rows)
        if _unlikely(times, len(first), rows, rows):
            yield f"{times} of {len(first)} rows of the next epoch {way}in the same order, moved by {shift}"
    pairs = [x[:-1] * rows + x[1:] for x in (first, second)]
    again = len(np.intersect1d(*pairs))
    if -math.lgamma(again + 1) < RARE:  # the expected number of sets of k such successions is at most 1 / k!
        yield f"{again} of {len(first)} rows of the next epoch after the same row"


def _tail(count: int, trials: int, share: float) -> float:
    """How much less than `RARE` the Chernoff bound of at least `count` of `trials` is, in logarithms; negative: it is not.

    trials * KL(count / trials || share), above the mean."""
    if not trials or count <= share * trials or share >= 1:
        return -math.inf
    part = count / trials
    distance = part * math.log(part / share) + ((1 - part) * math.log((1 - part) / (1 - share)) if part < 1 else 0.0)
    return RARE + trials * distance


def _most_common(values: np.ndarray) -> tuple[int, int]:
    """The most common value, and how often it comes; 0, 0 for none."""
    if not values.size:
        return 0, 0
    found, counts = np.unique(values, return_counts=True)
    best = int(np.argmax(counts))
    return int(found[best]), int(counts[best])


def _unlikely(times: int, places: int, free: int, values: int) -> bool:
    """Whether `times` of `places` constraints, each with `free` possible images, hold by chance with less than e**RARE.

    The expected number of sets of k that hold is C(places, k) * (free - k)! / free!, for each of `values` distances.
    """
    if times > free:
        return True
    sets = math.lgamma(places + 1) - math.lgamma(times + 1) - math.lgamma(places - times + 1)
    return math.log(values) + sets + math.lgamma(free - times + 1) - math.lgamma(free + 1) < RARE
