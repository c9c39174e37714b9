"""Shards against the tokenizer they are to be read with: whether the ids that a run will see are words of its language.

Fingerprints say that the shards were made with this tokenizer; this looks at the ids themselves, through the stream that
batches are made from. It finds ids that are off by one or of too narrow a type, BOS or EOS lost or doubled, special tokens
inside documents, ids of another tokenizer, text that was changed before it was encoded, a stream that is read from another
place than it should.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.data.shards import ShardSet, TokenStream
from jaxlm.tokenizer import Tokenizer
from jaxlm.tokenizer.portable import Portable
from jaxlm.tokenizer.pretoken import last_cut

CHUNK = 1 << 20  # tokens looked at together
CHUNKS = 128  # of a split, at most, evenly spaced: 134 million tokens, in some 3 s
DOCUMENTS = 32  # of a split, encoded again
LONG = 1 << 15  # ids; longer documents are not encoded again
APART, PLAIN = 8, 1 << 11  # of those, encoded by Python's encoder too, which shares no code with the compiled one; ids of each
REACHES = (1 << 18, 1 << 17, 1 << 16, 1 << 15)  # bytes of a split's longest documents, encoded by it as well, in some 0.3 s


class Agreement(NamedTuple):
    """What was looked at in a split: `tokens` of `of`, and documents encoded again."""

    split: str
    tokens: int
    of: int
    documents: int

    def words(self) -> str:
        """One line."""
        return f"{self.split}: {self.tokens:,} of {self.of:,} ids looked at, {self.documents} documents encoded again"


def require_agreement(data: ShardSet, tokenizer: Tokenizer) -> list[Agreement]:
    """Raise ContractError, naming the place, where the shards are not in the language of `tokenizer`; say what was looked at.

    Every id is one of the tokenizer; BOS and EOS stand at the borders of documents, special ids nowhere else; the ids of a
    split stand for as many bytes as its documents had; documents spread over it, decoded and encoded again, give the same
    ids, some of them by another encoder as well, since what made the shards would agree with itself; the longest ones too, as
    far as `REACHES` goes, since what is long may be encoded in another way.

    One pass in chunks of bounded memory: about 20 ns a token, for `CHUNK * CHUNKS` tokens at most. Of more, an evenly spaced
    sample is looked at, and their bytes are not summed.
    """
    found = []
    for split, stream in (("train", data.train), ("val", data.val)):
        looked, size = _require_ids(stream, split, tokenizer, data.path)
        recorded = data.manifest.facts["splits"][split]["bytes"]
        if looked == len(stream) and size != recorded:
            expected = f"{recorded:,} bytes of text in {split}, as its documents had"
            raise _broken(data.path, expected, f"ids that stand for {size:,} bytes")
        found.append(Agreement(split, looked, len(stream), _require_again(stream, split, tokenizer, data.path)))
    return found


def _require_ids(stream: TokenStream, split: str, tokenizer: Tokenizer, path: Path) -> tuple[int, int]:
    """Ids and borders of a split; how many ids were looked at, and the bytes that they stand for."""
    chunks = -(-len(stream) // CHUNK)
    chosen = np.arange(chunks) if chunks <= CHUNKS else np.arange(CHUNKS) * (chunks - 1) // (CHUNKS - 1)
    lengths, last_id = tokenizer.byte_lengths, tokenizer.vocab_size - 1
    looked = size = 0
    for chunk in chosen.tolist():
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, len(stream))
        ids = stream.slice(begin, end)
        if len(ids) != end - begin:
            raise _broken(path, f"{split} tokens {begin}..{end - 1}", f"{len(ids)} of them")
        if int(ids.min()) < 0 or int(ids.max()) > last_id:
            at = int(np.argmax((ids < 0) | (ids > last_id)))
            raise _broken(path, f"ids of the tokenizer, in 0..{last_id}", f"{ids[at]} at {split} token {begin + at}")
        here = lengths[ids]
        _require_borders(stream, split, tokenizer, path, begin, ids, np.flatnonzero(here == 0))
        size += int(here.sum(dtype=np.int64))
        looked += len(ids)
    return looked, size


def _require_borders(
    stream: TokenStream, split: str, tokenizer: Tokenizer, path: Path, begin: int, ids: np.ndarray, textless: np.ndarray
) -> None:
    """BOS at the first place of each document and EOS at its last, in the tokens from `begin` on, and no other id without
    text. textless: the places of those."""
    low, high = np.searchsorted(stream.starts, begin, "left"), np.searchsorted(stream.starts, begin + len(ids), "right")
    borders = stream.starts[low:high] - begin
    firsts, lasts = borders[borders < len(ids)], borders[borders > 0] - 1
    for places, name, wanted in ((firsts, "first", tokenizer.bos_id), (lasts, "last", tokenizer.eos_id)):
        wrong = places[ids[places] != wanted]
        if wrong.size:
            expected = f"id {wanted} as the {name} one of every document"
            raise _broken(path, expected, f"{ids[wrong[0]]} at {split} token {begin + int(wrong[0])}")
    inside = np.setdiff1d(textless, np.concatenate([firsts, lasts]))
    if inside.size:
        expected = "ids of text between the borders of documents, none of a special token"
        raise _broken(path, expected, f"{ids[inside[0]]} at {split} token {begin + int(inside[0])}")


def _require_again(stream: TokenStream, split: str, tokenizer: Tokenizer, path: Path) -> int:
    """Documents spread over a split, decoded and encoded again; how many. Long ones are passed over."""
    short = np.flatnonzero(np.diff(stream.starts) <= LONG)
    count = min(DOCUMENTS, len(short))
    chosen = short[np.arange(count) * (len(short) - 1) // max(count - 1, 1)]
    lengths = np.diff(stream.starts)[chosen]
    apart = set(chosen[lengths <= PLAIN][:APART].tolist()) or set(chosen[np.argsort(lengths)][:1].tolist())
    portable = Portable(tokenizer.vocabulary, tokenizer.pattern)
    for document in chosen.tolist():
        ids = stream.document(document)
        try:
            text = tokenizer.decode_bytes(ids[1:-1]).decode()
        except ValueError as error:  # an id that is none, bytes that are no UTF-8
            raise _broken(path, f"ids that stand for text in {split} document {document}", error) from None
        _require_same(ids, tokenizer.encode_document(text), path, f"in {split} document {document}")
        if document in apart:
            plain = np.concatenate([ids[:1], portable.encode(text), ids[-1:]])
            _require_same(ids, plain, path, f"by Python's encoder in {split} document {document}")
    _require_long(stream, split, tokenizer, portable, path)
    return count


def _require_long(stream: TokenStream, split: str, tokenizer: Tokenizer, portable: Portable, path: Path) -> None:
    """The longest documents of a split, each as far as it is to be looked at, against the ids that Python's encoder gives."""
    lengths, count = np.diff(stream.starts), min(len(REACHES), stream.documents)
    longest = np.argpartition(lengths, -count)[-count:]
    for document, reach in zip(longest[np.argsort(-lengths[longest])].tolist(), REACHES, strict=False):
        begin, end = int(stream.starts[document]) + 1, int(stream.starts[document + 1]) - 1
        ids = stream.slice(begin, min(end, begin + reach))  # an id is a byte at least
        where = f"{split} document {document}"
        try:
            raw = tokenizer.decode_bytes(ids)
            is_whole = begin + len(ids) == end and len(raw) <= reach
            text = codecs.getincrementaldecoder("utf-8")().decode(raw[:reach], is_whole)
        except ValueError as error:
            raise _broken(path, f"ids that stand for text in {where}", error) from None
        if not is_whole:  # what follows may change the last pre-tokens, but none before a place to cut
            text = text[: last_cut(text, len(text), None)]
        again = portable.encode(text)
        held = ids if is_whole else ids[: len(again)]
        _require_same(held, again, path, f"by Python's encoder in the text of {where}, a long one")


def _require_same(ids: np.ndarray, again: np.ndarray, path: Path, where: str) -> None:
    if not np.array_equal(ids, again):
        same = min(len(ids), len(again))
        at = int(np.argmax(np.append(ids[:same] != again[:same], True)))
        expected = f"{where}, from place {at} on, the ids of its text {again[at : at + 8].tolist()}"
        raise _broken(path, expected, ids[at : at + 8].tolist())


def _broken(path: Path, expected: str, found: object) -> ContractError:
    remedy = "The shards are not in the language of this tokenizer: build them again with it."
    return ContractError("data", artifact=path, expected=expected, found=found, remedy=remedy)
