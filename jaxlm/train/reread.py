"""A second reading of what a step is fed: the tokens that the training split holds at the places of its rows.

What makes batches is one function, and a batch alone does not tell whether it is the one of its step. This knows the places by
itself: from the number of tokens in the manifest, from the rule of the order (a Feistel network that walks its cycle), which is
written here once more, and from the shards as they are mapped. It looks at what the step is given, behind the prefetcher: at
the first id of every row, and at one whole row, another one in each step.

Every process looks at the rows that it holds. It costs some 0.1 ms a step of 8 rows and 1 ms of 512 of 1024 tokens, one part in
sixty of making the batch; the rows of a thousand examples to come are worked out together, in a few milliseconds.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch, ShardSet

AHEAD = 1024  # examples of which the rows are worked out together, at least
SHOWN = 8  # ids in a message


class Reread:
    """The training split of a run, read by its manifest."""

    def __init__(self, data: ShardSet, cfg: RunConfig):
        split = data.manifest.facts["splits"]["train"]
        self.seed, self.length, self.tokens = cfg.data.order_seed, cfg.model.context_length, int(split["tokens"])
        self.rows = -(-(self.tokens - 1) // self.length)
        self.ends = list(itertools.accumulate(split["shards"].values()))
        self.shards = [np.asarray(shard) for shard in data.train.shards]
        self.known = range(0)  # examples, and the rows of the split that they are
        self.places = np.zeros(0, np.int64)

    def require(self, made: Batch, examples: np.ndarray, *, step: int, artifact: object) -> None:
        """Raise ContractError where `made` does not hold these examples of the endless sequence, at the step after `step`."""
        if len(made.tokens) != len(examples):
            raise _broken(artifact, f"{len(examples)} rows", f"{len(made.tokens)}")
        rows = self.rows_of(examples)
        held = self._at(rows * self.length)
        if (wrong := np.flatnonzero(made.tokens[:, 0] != held)).size:
            place = int(wrong[0])
            where = f"{held[place]} as its first id in row {place}, which is row {rows[place]} of the split"
            raise _broken(artifact, where, f"{made.tokens[place, 0]}, then {made.tokens[place, 1 : 1 + SHOWN].tolist()}")
        place = step % len(rows)
        self._whole(Batch(*(array[place] for array in made)), int(rows[place]), place, artifact)

    def _whole(self, made: Batch, row: int, place: int, artifact: object) -> None:
        """One row, token by token. made: arrays [T]."""
        begin = row * self.length
        held = self._at(np.arange(begin, min(begin + self.length + 1, self.tokens)))
        real = min(len(held), self.length)
        if (filled := int(np.count_nonzero(made.segments))) != real:
            raise _broken(artifact, f"{real} tokens in row {place}, which is row {row} of the split", f"{filled}")
        for name, ids, there in (("ids", made.tokens, held), ("labels", made.labels, held[1:])):
            different = ids[: len(there)] != there[: self.length]
            if different.any():
                at = int(np.argmax(different))
                where = (
                    f"{name} {there[at : at + SHOWN].tolist()} at place {at} of row {place}, which is row {row} of the split"
                )
                raise _broken(artifact, where, f"{ids[at : at + SHOWN].tolist()}")

    def _at(self, places: np.ndarray) -> np.ndarray:
        """The tokens at these places of the split."""
        found, shards = np.empty(len(places), np.int64), np.searchsorted(self.ends, places, "right")
        for shard in set(shards.tolist()):
            here = shards == shard
            found[here] = self.shards[shard][places[here] - (self.ends[shard - 1] if shard else 0)]
        return found

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """The rows of the split that these examples are. examples: int, ascending."""
        first, last = int(examples[0]), int(examples[-1])
        if first not in self.known or last not in self.known:
            self.known = range(first, max(last + 1, first + AHEAD))
            self.places = rows_in_order(np.arange(first, self.known.stop), self.rows, self.seed)
        return self.places[np.asarray(examples) - self.known.start]


def rows_in_order(examples: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The rows, of `rows` in all, that these examples are: in each epoch each once, in the order of the seed and the epoch.

    By the rule, not by the code of `jaxlm.data.order`: two halves of as many bits as it takes for both to hold the last row;
    six rounds, in each of which one half is added (xor) to a hash of the other and of a key, and they change places; and all
    that until the result is a row. Keys are the first 48 bytes of two SHA-256, the hash is MurmurHash3's finaliser.
    """
    epochs, places = np.divmod(np.asarray(examples, np.int64), rows)
    bits = 1
    while 4**bits < rows:
        bits += 1
    shift, mask = np.uint64(bits), np.uint64(2**bits - 1)
    found = np.empty(len(places), np.int64)
    for epoch in sorted(set(epochs.tolist())):
        names = f"jaxlm row order {seed} {epoch}", f"{epoch} {seed}"
        keys = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
        words = [np.uint64(int.from_bytes(keys[i : i + 8], "little")) for i in range(0, 48, 8)]
        here = np.flatnonzero(epochs == epoch)
        x = places[here].astype(np.uint64)
        while len(here):
            high, low = x >> shift, x & mask
            for word in words:
                high, low = low, high ^ _hashed(low ^ word) & mask
            x = (high << shift) + low
            done = x < rows
            found[here[done]] = x[done]
            here, x = here[~done], x[~done]
    return found


def _hashed(h: np.ndarray) -> np.ndarray:
    h = h ^ h >> np.uint64(33)
    h = h * np.uint64(0xFF51AFD7ED558CCD)
    h = h ^ h >> np.uint64(33)
    h = h * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ h >> np.uint64(33)


def _broken(artifact: object, expected: str, found: str) -> ContractError:
    return ContractError(
        "batch",
        artifact=artifact,
        expected=expected,
        found=found,
        remedy="What the step is fed is not what the shards hold at its place in the order: the loader, or what stands between "
        "it and the step, is wrong. Go on from the last checkpoint.",
    )
