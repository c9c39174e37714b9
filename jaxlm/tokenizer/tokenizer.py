"""The tokenizer: text to ids and back, byte-level BPE.

Ids 0..255 are the bytes, then come the merges in order, then the special tokens. Every string has ids, and
`decode(encode(s)) == s`.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.contract import ContractError, Manifest, new_artifact, plain
from jaxlm.tokenizer.artifact import FILE, KIND, PROBE, facts_of, manifest_of, parse, serialise
from jaxlm.tokenizer.merging import Pair, merge
from jaxlm.tokenizer.pretoken import PATTERNS, compiled, pieces, special_pattern, split

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
        special_tokens = _checked(special_tokens)
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
        """Bytes of text that each id stands for, int32 [V], read-only; 0 for special tokens."""
        special = set(self.special_ids.values())
        lengths = np.array([0 if i in special else len(self.vocab[i]) for i in range(self.vocab_size)], np.int32)
        lengths.setflags(write=False)
        return lengths

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
            probe_pretokens=split(PROBE, self.pattern),
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
        return self._encode(text, None, 0)

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Ids of `text`. allowed_special: special tokens that stand for their ids, or "all".

        Raises ValueError where the text holds another special token (text from outside must not steer the model), or a lone
        surrogate, which no UTF-8 stands for.
        """
        return self._encode(text, self._allowed(allowed_special), 0)

    def encode_batch(self, texts: Iterable[str], allowed_special: Collection[str] = ()) -> list[list[int]]:
        """`encode` of each text."""
        if isinstance(texts, str):
            raise ValueError("texts: expected a list of str, found one str; use encode")
        return [self.encode(text, allowed_special) for text in texts]

    def encode_iterable(self, chunks: Iterable[str], allowed_special: Collection[str] = ()) -> Iterator[int]:
        """Ids of a text that comes in chunks: those of `encode` of the whole, however it is cut.

        Memory is bounded by the size of a chunk and the longest pre-token. Raises as `encode` does, when it comes to the place;
        characters are counted from the beginning of the whole.
        """
        allowed, start = self._allowed(allowed_special), 0
        for piece in pieces(chunks, self.special_tokens, size=PIECE):
            yield from self._encode(piece, allowed, start)
            start += len(piece)

    def _allowed(self, allowed_special: Collection[str]) -> frozenset[str]:
        if isinstance(allowed_special, str) and allowed_special != "all":
            allowed_special = (allowed_special,)
        allowed = frozenset(self.special_tokens if allowed_special == "all" else allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special: expected some of {self.special_tokens}, found {sorted(unknown)}")
        return allowed

    def _encode(self, text: str, allowed: frozenset[str] | None, start: int) -> list[int]:
        """allowed: special tokens that stand for their ids, None: all is text. start: of `text` in the whole, for messages."""
        if not isinstance(text, str):
            raise TypeError(f"expected text as str, found {type(text).__name__}")
        finder = special_pattern(self.special_tokens) if allowed is not None else None
        ids: list[int] = []
        at = 0
        try:
            for match in finder.finditer(text) if finder else ():
                if allowed is not None and match[0] not in allowed:
                    raise ValueError(
                        f"expected text without special tokens, found {match[0]!r} at character {start + match.start()}; "
                        "allow it with allowed_special, or encode it as text with encode_ordinary"
                    )
                self._append(ids, text[at : match.start()])
                ids.append(self.special_ids[match[0]])
                at = match.end()
            self._append(ids, text[at:])
        except UnicodeEncodeError:
            where = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
            raise ValueError(
                f"expected Unicode text, found the lone surrogate U+{ord(text[where]):04X} at character {start + where}, "
                "which no UTF-8 stands for; read the text with errors='replace'"
            ) from None
        return ids

    def _append(self, ids: list[int], text: str) -> None:
        """Append the ids of a text without special tokens. Raises UnicodeEncodeError for a lone surrogate."""
        cache = self._cache
        for pretoken in split(text, self.pattern):
            known = cache.get(pretoken)
            ids.extend(self._pretoken(pretoken) if known is None else known)

    def _pretoken(self, pretoken: str) -> tuple[int, ...]:
        ids = tuple(merge(list(pretoken.encode()), self._product))
        if len(pretoken) < 256:  # long ones are rare, and would fill the memory
            if len(self._cache) >= CACHE:
                self._cache.clear()
            self._cache[pretoken] = ids
        return ids

    def encode_document(self, text: str) -> np.ndarray:
        """A document as it is trained on: BOS, the ids of its text, EOS; int32."""
        return np.array([self.bos_id, *self.encode_ordinary(text), self.eos_id], np.int32)

    # ---- ids to text ---------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; a special token stands for its text. ids: integers of Python or NumPy.

        Raises ValueError for an integer that is no id, TypeError for what is no integer.
        """
        try:
            return b"".join([self.vocab[operator.index(i)] for i in ids])
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
        if set(manifest.files) != {FILE}:
            raise ContractError(KIND, artifact=root, expected=f"the file {FILE}", found=sorted(manifest.files))
        content = parse((root / FILE).read_bytes(), artifact=root / FILE)
        try:
            tokenizer = cls(**content, provenance=manifest.provenance)
        except ValueError as error:
            raise ContractError(KIND, artifact=root / FILE, expected="a tokenizer", found=str(error)) from None
        promised = {**manifest.facts, "files": plain(manifest.files), "parents": plain(manifest.parents)}
        found = tokenizer.manifest
        kept = {**found.facts, "files": plain(found.files), "parents": plain(found.parents)}
        for name in sorted(promised.keys() | kept.keys()):
            if promised.get(name) != kept.get(name):
                raise ContractError(
                    KIND,
                    artifact=root,
                    expected=f"{name} {promised.get(name)}",
                    found=kept.get(name),
                    remedy="This version of jaxlm encodes otherwise: use the version that made it, or make everything again.",
                )
        return tokenizer


def _checked(special_tokens: Sequence[str]) -> tuple[str, ...]:
    """Special tokens as a tuple. Raises ValueError for what can be none."""
    name = "special_tokens"
    if isinstance(special_tokens, str):
        raise ValueError(f"{name}: expected a list of str, found one str, {special_tokens!r}")
    special_tokens = tuple(special_tokens)
    for token in special_tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"{name}: expected texts of at least one character, found {token!r}")
        if any("\ud800" <= c <= "\udfff" for c in token):
            raise ValueError(f"{name}: expected Unicode text, found a lone surrogate in {token!r}")
        if len(token.encode()) == 1:
            raise ValueError(f"{name}: expected texts that are no single byte (those have ids 0..255), found {token!r}")
        if special_tokens.count(token) > 1:
            raise ValueError(f"{name}: expected no repetition, found {token!r} {special_tokens.count(token)} times")
    return special_tokens


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
