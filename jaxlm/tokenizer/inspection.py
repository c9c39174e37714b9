"""What a tokenizer made of its training, and of texts: the tokens of a text, those that are odd, and whether all comes back.

Nothing here prints; `jaxlm tokenizer inspect` and its page show an `Inspection`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxlm.contract import InputError
from jaxlm.tokenizer.artifact import PROBE
from jaxlm.tokenizer.merging import TOKEN, merge
from jaxlm.tokenizer.samples import SAMPLES, Sample
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.visible import is_text


@dataclass(frozen=True)
class Token:
    """One id. rank: of the merge that first makes it, None for bytes and special tokens; parts: what that merge joins."""

    id: int
    raw: bytes
    rank: int | None = None
    parts: tuple[bytes, bytes] | None = None
    special: bool = False


def tokens_of(tokenizer: Tokenizer) -> dict[int, Token]:
    """Every id with its bytes and the merge that makes it: bytes, merges, special tokens, in this order."""
    vocabulary = tokenizer.vocabulary
    ids: list[int] = vocabulary.ids.tolist()
    found = {ids[byte]: Token(ids[byte], bytes([byte])) for byte in range(256)}
    for product in vocabulary.product.values():  # in order of rank
        rank, number = product >> 32, ids[product & TOKEN]
        a, b = vocabulary.merges[rank]
        found.setdefault(number, Token(number, a + b, rank, (a, b)))
    return found | {number: Token(number, text.encode(), special=True) for text, number in vocabulary.special_ids.items()}


@dataclass(frozen=True)
class Measured:
    """A sample and its tokens. against_english: tokens for each token of English, of languages; else 0."""

    sample: Sample
    bytes: int
    tokens: int
    against_english: float = 0.0

    @property
    def bytes_per_token(self) -> float:
        """More is better: fewer tokens for the same text."""
        return self.bytes / self.tokens


def measure(tokenizer: Tokenizer, samples: Iterable[Sample] = SAMPLES) -> list[Measured]:
    """Tokens of each sample."""
    counted = [(sample, len(tokenizer.encode_ordinary(sample.text))) for sample in samples]
    english = next((tokens for sample, tokens in counted if sample.name == "English"), 0)
    return [
        Measured(s, len(s.text.encode()), tokens, tokens / english if english and s.kind == "language" else 0.0)
        for s, tokens in counted
    ]


def by_group(measured: Iterable[Measured], group: str) -> dict[str, float]:
    """Bytes per token of all samples that share a `script` or a `kind`; samples without one are left out."""
    totals: dict[str, list[int]] = {}
    for one in measured:
        total = totals.setdefault(getattr(one.sample, group), [0, 0])
        total[0] += one.bytes
        total[1] += one.tokens
    return {name: size / tokens for name, (size, tokens) in totals.items() if name}


def unreachable(tokenizer: Tokenizer) -> list[int]:
    """Ids that no text is ever encoded to: their own bytes are merged to something else.

    Merges inside of a token do not depend on what stands around it, so that its bytes alone decide.
    """
    vocabulary = tokenizer.vocabulary
    ids: list[int] = vocabulary.ids.tolist()
    numbers = enumerate(vocabulary.tokens)
    return [ids[i] for i, raw in numbers if i > 255 and merge(list(raw), vocabulary.product) != [i]]


# ---- what comes back ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundTripFailure:
    """where: what was encoded, or the id. at: offset of the first byte that differs; expected, found: up to 16 bytes there."""

    where: str
    at: int
    expected: bytes
    found: bytes


def difference(where: str, expected: bytes, found: bytes) -> RoundTripFailure | None:
    """None where both are equal."""
    if expected == found:
        return None
    shorter = min(len(expected), len(found))
    at = next((i for i in range(shorter) if expected[i] != found[i]), shorter)
    return RoundTripFailure(where, at, expected[at : at + 16], found[at : at + 16])


def failing_ids(tokenizer: Tokenizer) -> Iterator[RoundTripFailure]:
    """Ids that alone do not stand for the bytes that their merge joins."""
    for token in tokens_of(tokenizer).values():
        if failure := difference(f"id {token.id}", token.raw, tokenizer.decode_bytes([token.id])):
            yield failure


def encoded(
    tokenizer: Tokenizer, text: str, where: str, allowed_special: Collection[str] | None = None
) -> tuple[np.ndarray, RoundTripFailure | None]:
    """The ids of a text, int32, and the failure where they do not stand for its bytes, else None."""
    ids = tokenizer.encode_to_numpy(text, allowed_special)
    return ids, difference(where, text.encode(), tokenizer.decode_bytes(ids))


# ---- all of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """All that `inspect` found.

    ids: of the text, int32. counts: how often each id occurs in the data, int64 [V], or None where there was none; documents
    and data_bytes: of it. longest: all ids but those of special tokens, by the length of their bytes. not_utf8: ids that are
    not UTF-8 alone. failures: what did not come back; checked: ids and texts that were tried.
    """

    tokenizer: Tokenizer
    text: str
    ids: np.ndarray
    tokens: dict[int, Token]
    measured: list[Measured]
    longest: list[int]
    not_utf8: list[int]
    unreachable: list[int]
    counts: np.ndarray | None
    documents: int
    data_bytes: int
    failures: list[RoundTripFailure]
    checked: dict[str, int]

    @property
    def never(self) -> list[int] | None:
        """Ids of merges that the data never has, in order of rank; None where there was no data."""
        return None if self.counts is None else [t.id for t in self.tokens.values() if t.parts and not self.counts[t.id]]

    @property
    def never_bytes(self) -> int:
        """How many of the 256 bytes never occur as tokens of their own in the data."""
        bare = [token.id for token in self.tokens.values() if not token.parts and not token.special]
        return 0 if self.counts is None else int((self.counts[bare] == 0).sum())


def inspect(
    tokenizer: Tokenizer,
    text: str,
    *,
    documents: Iterable[str] | None = None,
    id_counts: np.ndarray | None = None,
    allow_special: bool = False,
    kept_failures: int = 100,
) -> Inspection:
    """Look at a tokenizer through `text`, the samples, and data where there is any.

    documents: texts that are encoded and counted, one at a time. id_counts: int64 [V], where the ids of the data are counted
    already; added to those of documents. allow_special: special tokens in `text` stand for their ids. kept_failures: how many
    failures of round trips are kept. Raises InputError for a lone surrogate in `text`.
    """
    failures: list[RoundTripFailure] = []
    checked = {"ids": len(tokenizer.vocab), "texts": 0}
    counts = None if documents is None and id_counts is None else np.zeros(tokenizer.vocab_size, np.int64)
    if counts is not None and id_counts is not None:
        counts += id_counts
    number = size = 0

    def tried(text: str, where: str, allowed: Collection[str] | None = None) -> np.ndarray:
        checked["texts"] += 1
        ids, failure = encoded(tokenizer, text, where, allowed)
        if failure and len(failures) < kept_failures:
            failures.append(failure)
        return ids

    try:
        ids = tried(text, "the text", tokenizer.special_tokens if allow_special else None)
    except ValueError as error:
        raise InputError(str(error)) from None
    for document in documents or ():
        number, size = number + 1, size + len(document.encode())
        found = np.bincount(tried(document, f"document {number} of the data"), minlength=tokenizer.vocab_size)
        counts = found if counts is None else counts + found
    for sample in SAMPLES:
        tried(sample.text, f"the sample {sample.name}")
    tried(PROBE, "the probe text")
    tried(PROBE, "the probe text with special tokens", tokenizer.special_tokens)
    tokens = tokens_of(tokenizer)
    ordinary = [token for token in tokens.values() if not token.special]
    return Inspection(
        tokenizer=tokenizer,
        text=text,
        ids=ids,
        tokens=tokens,
        measured=measure(tokenizer),
        longest=[t.id for t in sorted(ordinary, key=lambda t: (-len(t.raw), t.id))],
        not_utf8=[token.id for token in ordinary if not is_text(token.raw)],
        unreachable=unreachable(tokenizer),
        counts=counts,
        documents=number,
        data_bytes=size,
        failures=[*failures, *failing_ids(tokenizer)][:kept_failures],
        checked=checked,
    )
