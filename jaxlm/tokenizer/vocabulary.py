"""What ids there are: bytes, what the merges make, special tokens; and in which numbers.

Inside, the bytes are tokens 0..255, and what the merges make is numbered from 256 in the order in which it is first made.
Outside, a token has an id. In tokenizers made here the two are equal; GPT-2's and others' give their bytes other ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.tokenizer.merging import Pair, product_of

MAX_TOKENS = 1 << 24  # an int32 array of lookups stays small, and ids of every model known fit


@dataclass(frozen=True)
class Vocabulary:
    """Merges and special tokens, checked, and the tables that follow from them.

    tokens: bytes of each token, by its number inside. product: pair of tokens -> `product_of(rank, token)`. ids: id of each
    token, int32 [len(tokens)], read-only. special_ids: text -> id. vocab: id -> bytes of it, special tokens included.
    """

    merges: list[tuple[bytes, bytes]]
    tokens: list[bytes]
    product: dict[Pair, int]
    ids: np.ndarray
    special_ids: dict[str, int]
    vocab: dict[int, bytes]

    @classmethod
    def of(
        cls,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | Mapping[str, int],
        ids: Sequence[int] | None = None,
    ) -> Vocabulary:
        """The vocabulary of merges in order of rank. ids: None for 0, 1, 2, ...

        A merge may make what an earlier one made of other parts. special_tokens: texts, which get the ids after the largest, or
        texts with their ids. Raises ValueError for merges, special tokens or ids that do not fit together.
        """
        merges = [(bytes(a), bytes(b)) for a, b in merges]
        tokens, product = _made(merges)
        numbers = _numbers(len(tokens), ids)
        special_ids = _special_ids(special_tokens, first=int(numbers.max()) + 1)
        vocab = dict(zip(numbers.tolist(), tokens, strict=True))
        for text, number in special_ids.items():
            if number in vocab:
                raise ValueError(f"special_tokens: expected an id of its own for {text!r}, found {number}, which is in use")
            vocab[number] = text.encode()
        return cls(merges, tokens, product, numbers, special_ids, vocab)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocab) + 1

    @property
    def range(self) -> str:
        """The ids in words, for messages."""
        missing = self.size - len(self.vocab)
        return f"0..{self.size - 1}" + (f" ({missing} of which are none)" if missing else "")

    @property
    def is_plain(self) -> bool:
        """Whether ids are the numbers inside, and special tokens come after them in order."""
        count = len(self.tokens)
        return int(self.ids[-1]) == count - 1 and bool((self.ids == np.arange(count)).all()) and self.follow

    @property
    def follow(self) -> bool:
        """Whether special tokens have the ids after the largest of the others, in order."""
        first = int(self.ids.max()) + 1
        return list(self.special_ids.values()) == list(range(first, first + len(self.special_ids)))

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, int32 [size], read-only; 0 for special tokens and for what is no id."""
        lengths = np.zeros(self.size, np.int32)
        lengths[self.ids] = [len(token) for token in self.tokens]
        lengths.setflags(write=False)
        return lengths


def _made(merges: Sequence[tuple[bytes, bytes]]) -> tuple[list[bytes], dict[Pair, int]]:
    """The tokens, and pair of tokens -> rank and token."""
    tokens = [bytes([i]) for i in range(256)]
    number = {text: i for i, text in enumerate(tokens)}
    product: dict[Pair, int] = {}
    for rank, (a, b) in enumerate(merges):
        if a not in number or b not in number:
            raise ValueError(f"merges: expected a pair of bytes or earlier merges at rank {rank}, found {a!r} and {b!r}")
        pair = number[a], number[b]
        if pair in product:
            raise ValueError(f"merges: expected something new at rank {rank}, found {a!r} and {b!r} for the second time")
        made = number.setdefault(a + b, len(tokens))
        if made == len(tokens):
            tokens.append(a + b)
        product[pair] = product_of(rank, made)
    return tokens, product


def _numbers(count: int, ids: Sequence[int] | None) -> np.ndarray:
    numbers: np.ndarray = np.arange(count, dtype=np.int32) if ids is None else np.array(ids, np.int64)
    if numbers.shape != (count,):
        raise ValueError(f"ids: expected {count}, one for each byte and each product of a merge, found {len(numbers)}")
    if ids is not None:
        if numbers.min() < 0 or numbers.max() >= MAX_TOKENS:
            raise ValueError(f"ids: expected numbers in 0..{MAX_TOKENS - 1}, found {numbers.min()}..{numbers.max()}")
        if len(np.unique(numbers)) != count:
            raise ValueError("ids: expected different numbers, found one twice")
    numbers = numbers.astype(np.int32)
    numbers.setflags(write=False)
    return numbers


def _special_ids(special_tokens: Sequence[str] | Mapping[str, int], *, first: int) -> dict[str, int]:
    """Text -> id. Raises ValueError for what can be no special token."""
    name = "special_tokens"
    if isinstance(special_tokens, str):
        raise ValueError(f"{name}: expected a list of str, found one str, {special_tokens!r}")
    texts = tuple(special_tokens)
    times = Counter(texts)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name}: expected texts of at least one character, found {text!r}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"{name}: expected Unicode text, found a lone surrogate in {text!r}")
        if len(text.encode()) == 1:
            raise ValueError(f"{name}: expected texts that are no single byte (those have ids already), found {text!r}")
        if times[text] > 1:
            raise ValueError(f"{name}: expected no repetition, found {text!r} {times[text]} times")
    if not isinstance(special_tokens, Mapping):
        return {text: first + i for i, text in enumerate(texts)}
    holders = Counter(special_tokens.values())
    for text, number in special_tokens.items():
        if not isinstance(number, int) or not 0 <= number < MAX_TOKENS:
            raise ValueError(f"{name}: expected an id in 0..{MAX_TOKENS - 1} for {text!r}, found {number!r}")
        if holders[number] > 1:
            raise ValueError(f"{name}: expected an id of its own for {text!r}, found {number} twice")
    return dict(special_tokens)
