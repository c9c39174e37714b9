"""The tokenizer: text to ids and back, byte-level BPE.

Ids 0..255 are the bytes, then come the merges in order, then the special tokens. Every string has ids, and
`decode(encode(s)) == s`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.contract import ContractError, Manifest, new_artifact
from jaxlm.tokenizer.artifact import FILE, KIND, PROBE, facts_of, manifest_of, parse, serialise
from jaxlm.tokenizer.merging import Pair, merge
from jaxlm.tokenizer.pretoken import PATTERNS, compiled, pieces, special_pattern

CACHE = 1 << 18  # pre-tokens whose ids are remembered
PIECE = 1 << 16  # characters that `encode_iterable` collects before it looks for a place to cut


class Tokenizer:
    """Byte-level BPE. Made by `train_tokenizer`, `Tokenizer.from_merges` or `Tokenizer.load`; never changed afterwards.

    merges: pairs of bytes in order of rank. special_tokens: texts with ids of their own; the first one opens and closes
    every document (`bos_id`, `eos_id`). pattern: a name in `PATTERNS`.
    """

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str],
        pattern: str,
        *,
        provenance: Mapping[str, Any] | None = None,
    ):
        compiled(pattern)
        special_tokens = tuple(special_tokens)
        if any(not isinstance(token, str) or not token for token in special_tokens):
            raise ValueError(f"special_tokens: expected texts of at least one character, found {special_tokens!r}")
        if len(set(special_tokens)) != len(special_tokens):
            raise ValueError(f"special_tokens: expected no repetition, found {special_tokens!r}")
        self.merges = [(bytes(a), bytes(b)) for a, b in merges]
        self.special_tokens, self.pattern = special_tokens, pattern
        self.vocab, self._product = _vocabulary(self.merges)
        self.special_ids = {token: len(self.vocab) + i for i, token in enumerate(special_tokens)}
        self.vocab |= {i: token.encode() for token, i in self.special_ids.items()}
        self._provenance = dict(provenance or {})
        self._cache: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_merges(
        cls, merges: Sequence[tuple[bytes, bytes]], special_tokens: Sequence[str] = ("<|endoftext|>",), pattern: str = "gpt2"
    ) -> Tokenizer:
        """A tokenizer from its merges. Raises ValueError where a merge joins what no earlier one made."""
        return cls(merges, special_tokens, pattern)

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Ids in all: 256 bytes, the merges, the special tokens."""
        return len(self.vocab)

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, int32 [V]; 0 for special tokens."""
        lengths = [len(self.vocab[i]) for i in range(self.vocab_size)]
        return np.array(lengths[: self.vocab_size - len(self.special_tokens)] + [0] * len(self.special_tokens), np.int32)

    @property
    def bos_id(self) -> int:
        """The id that opens a document: the first special token. Raises ValueError where there is none."""
        if not self.special_tokens:
            raise ValueError("expected a tokenizer with a special token that opens and closes documents, found none")
        return self.special_ids[self.special_tokens[0]]

    @property
    def eos_id(self) -> int:
        """The id that closes a document: the first special token."""
        return self.bos_id

    @functools.cached_property
    def manifest(self) -> Manifest:
        """What this tokenizer promises."""
        facts = facts_of(
            pattern=self.pattern,
            pattern_text=PATTERNS[self.pattern],
            merges=self.merges,
            special_ids=self.special_ids,
            probe_ids=self.encode(PROBE, allowed_special="all"),
            vocab=self.vocab,
        )
        return manifest_of(self._content(), facts, self._provenance)

    @property
    def fingerprint(self) -> str:
        """Of the manifest: equal for equal pattern, merges, special tokens and encoding."""
        return self.manifest.fingerprint

    def _content(self) -> bytes:
        return serialise(pattern=self.pattern, special_tokens=self.special_tokens, merges=self.merges)

    # ---- text to ids ---------------------------------------------------------------------------------------------

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of `text`, in which special tokens are text like any other. Raises ValueError for a lone surrogate."""
        ids: list[int] = []
        cache = self._cache
        for pretoken in compiled(self.pattern).findall(text):
            known = cache.get(pretoken)
            if known is None:
                known = self._pretoken(pretoken)
            ids.extend(known)
        return ids

    def _pretoken(self, pretoken: str) -> tuple[int, ...]:
        try:
            raw = pretoken.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected text, found the lone surrogate U+{ord(pretoken[error.start]):04X}, which no UTF-8 stands for; "
                "read the text with errors='replace'"
            ) from None
        ids = tuple(merge(list(raw), self._product))
        if len(pretoken) < 256:  # long ones are rare, and would fill the memory
            if len(self._cache) >= CACHE:
                self._cache.clear()
            self._cache[pretoken] = ids
        return ids

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Ids of `text`. allowed_special: special tokens that stand for their ids, or "all".

        Raises ValueError where the text holds another special token: text from outside must not steer the model.
        """
        finder = special_pattern(self.special_tokens)
        if finder is None:
            return self.encode_ordinary(text)
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special: expected some of {self.special_tokens}, found {sorted(unknown)}")
        ids: list[int] = []
        at = 0
        for match in finder.finditer(text):
            if match[0] not in allowed:
                raise ValueError(
                    f"expected text without special tokens, found {match[0]!r} at character {match.start()}; "
                    "allow it with allowed_special, or encode it as text with encode_ordinary"
                )
            ids += self.encode_ordinary(text[at : match.start()])
            ids.append(self.special_ids[match[0]])
            at = match.end()
        return ids + self.encode_ordinary(text[at:])

    def encode_batch(self, texts: Iterable[str], allowed_special: Collection[str] = ()) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text, allowed_special) for text in texts]

    def encode_iterable(self, chunks: Iterable[str], allowed_special: Collection[str] = ()) -> Iterator[int]:
        """Ids of a text that comes in chunks: those of `encode` of the whole, however it is cut, in bounded memory."""
        for piece in pieces(chunks, self.special_tokens, size=PIECE):
            yield from self.encode(piece, allowed_special)

    def encode_document(self, text: str) -> np.ndarray:
        """A document as it is trained on: BOS, the ids of its text, EOS; int32."""
        return np.array([self.bos_id, *self.encode_ordinary(text), self.eos_id], np.int32)

    # ---- ids to text ---------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; a special token stands for its text. Raises ValueError for an id that is none."""
        try:
            return b"".join([self.vocab[int(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"expected ids in 0..{self.vocab_size - 1}, found {error.args[0]}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    # ---- to the disk and back ------------------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the artifact into a new directory, whole or not at all. Raises InputError where it is in use."""
        with new_artifact(directory) as temporary:
            (temporary / FILE).write_bytes(self._content())
            self.manifest.save(temporary)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Read an artifact, verify every byte, and compare what it makes of the probe text with what it promises.

        Raises ContractError where anything differs, InputError where there is no tokenizer.
        """
        root = Path(directory)
        manifest = Manifest.load(root, KIND)
        manifest.require_files(root)
        content = parse((root / FILE).read_bytes(), artifact=root / FILE)
        try:
            tokenizer = cls(**content, provenance=manifest.provenance)
        except ValueError as error:
            raise ContractError(KIND, artifact=root / FILE, expected="a tokenizer", found=str(error)) from None
        found = tokenizer.manifest
        if found.fingerprint != manifest.fingerprint:
            differing = [name for name, value in found.facts.items() if manifest.facts.get(name) != value] or ["files"]
            name = differing[0]
            raise ContractError(
                KIND,
                artifact=root,
                expected=f"{name} {manifest.facts.get(name)}",
                found=f"{name} {found.facts.get(name)}",
                remedy="This version of jaxlm encodes otherwise: use the version that made it, or make everything again.",
            )
        return tokenizer


def _vocabulary(merges: Sequence[tuple[bytes, bytes]]) -> tuple[dict[int, bytes], dict[Pair, int]]:
    """id -> bytes, and pair of ids -> id of their concatenation."""
    vocab = {i: bytes([i]) for i in range(256)}
    ids = {text: i for i, text in vocab.items()}
    product: dict[Pair, int] = {}
    for rank, (a, b) in enumerate(merges):
        if a not in ids or b not in ids:
            raise ValueError(f"merges: expected a pair of bytes or earlier merges at rank {rank}, found {a!r} and {b!r}")
        pair = ids[a], ids[b]
        if pair in product or a + b in ids:
            raise ValueError(f"merges: expected something new at rank {rank}, found {a + b!r} for the second time")
        product[pair] = ids[a + b] = 256 + rank
        vocab[256 + rank] = a + b
    return vocab, product
