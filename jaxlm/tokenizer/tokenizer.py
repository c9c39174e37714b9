"""The tokenizer: text to ids and back, byte-level BPE.

Ids 0..255 are the bytes, then come the merges in order, then the special tokens. Every string has ids, and
`decode(encode(s)) == s`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.contract import ContractError, Manifest, new_artifact, plain
from jaxlm.tokenizer.artifact import FILE, KIND, PROBE, facts_of, manifest_of, parse, serialise
from jaxlm.tokenizer.choosing import Choice, require_choice, thread_count
from jaxlm.tokenizer.engines import Engines
from jaxlm.tokenizer.forks import cached_property
from jaxlm.tokenizer.pretoken import PATTERNS, compiled, grouped, special_pattern, special_starts, split
from jaxlm.tokenizer.streaming import StreamEncoder
from jaxlm.tokenizer.vocabulary import Vocabulary

BATCH_CHARACTERS = 1 << 20  # of text that a thread encodes at once
PIECE = 1 << 16  # characters that `encode_iterable` collects before it looks for a place to cut

_NONE = np.zeros(0, np.int32)


class Tokenizer:
    """Byte-level BPE. Made by `train_tokenizer`, `Tokenizer.from_merges` or `Tokenizer.load`; never changed afterwards.

    merges: pairs of bytes in order of rank. special_tokens: texts with ids of their own, or texts and their ids; the first one
    opens and closes every document (`bos_id`, `eos_id`). pattern: a name in `PATTERNS`. ids: of the 256 bytes, then of what the
    merges make, in order; 0, 1, 2, ... by default. engine: "auto", or what encodes whatever it costs, "portable" (Python and
    NumPy) or "compiled" (numba); they give the same ids. Threads may share a tokenizer.
    """

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | Mapping[str, int],
        pattern: str,
        *,
        ids: Sequence[int] | None = None,
        provenance: Mapping[str, Any] | None = None,
        engine: Choice = "auto",
    ):
        compiled(pattern)
        self.vocabulary = Vocabulary.of(merges, special_tokens, ids)
        self.merges, self.vocab, self.special_ids = self.vocabulary.merges, self.vocabulary.vocab, self.vocabulary.special_ids
        self.special_tokens, self.pattern = tuple(self.special_ids), pattern
        self._provenance = dict(provenance or {})
        self._engines = Engines(self.vocabulary, pattern, choice=engine, probe=PROBE)
        self._engine: Choice = engine

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes get the definition, and make caches of their own."""
        ids = self.vocabulary.ids.tolist()
        made = functools.partial(type(self), ids=ids, provenance=self._provenance, engine=self._engine)
        return made, (self.merges, self.special_ids, self.pattern)

    @classmethod
    def from_merges(
        cls,
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | Mapping[str, int] = ("<|endoftext|>",),
        pattern: str = "gpt2",
        *,
        ids: Sequence[int] | None = None,
    ) -> Tokenizer:
        """A tokenizer from its merges. Raises ValueError where a merge joins what no earlier one made, or ids do not fit."""
        return cls(merges, special_tokens, pattern, ids=ids)

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: 256 bytes, the merges, the special tokens, and gaps where the ids have any."""
        return self.vocabulary.size

    @property
    def engine(self) -> str:
        """What encodes now: "portable" or "compiled"."""
        return "portable" if self._engines.compiled(0) is None else "compiled"

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, int32 [V], read-only; 0 for special tokens and for what is no id."""
        return self.vocabulary.byte_lengths()

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

    @cached_property
    def manifest(self) -> Manifest:
        """What this tokenizer promises."""
        facts = facts_of(
            pattern=self.pattern,
            pattern_text=PATTERNS[self.pattern],
            merges=self.merges,
            special_ids=self.special_ids,
            probe_ids=self._encode(PROBE, frozenset(self.special_tokens), 0, encode_many=self._portably).tolist(),
            probe_pretokens=split(PROBE, self.pattern),
            vocab=self.vocab,
            vocab_size=self.vocab_size,
        )
        return manifest_of(self._content(), facts, self._provenance)

    @property
    def fingerprint(self) -> str:
        """Of the manifest: equal for equal pattern, merges, special tokens and encoding."""
        return self.manifest.fingerprint

    def _content(self) -> bytes:
        return serialise(pattern=self.pattern, vocabulary=self.vocabulary)

    # ---- text to ids ---------------------------------------------------------------------------------------------

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of `text`, in which special tokens are text like any other. Raises ValueError for a lone surrogate."""
        return self._list(self._encode(text, None, 0))

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Ids of `text`. allowed_special: special tokens that stand for their ids, or "all".

        Raises ValueError where the text holds another special token (text from outside must not steer the model), or a lone
        surrogate, which no UTF-8 stands for; TypeError for what is no str.
        """
        return self._list(self._encode(text, self._allowed(allowed_special), 0))

    def encode_to_numpy(self, text: str, allowed_special: Collection[str] | None = None) -> np.ndarray:
        """Ids of `text` as int32, without the price of a list: those of `encode`, or of `encode_ordinary` for None."""
        return self._encode(text, None if allowed_special is None else self._allowed(allowed_special), 0)

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Collection[str] = (), *, threads: int | None = None
    ) -> list[list[int]]:
        """`encode` of each text. threads: as in `encode_batch_to_numpy`."""
        return [self._list(ids) for ids in self.encode_batch_to_numpy(texts, allowed_special, threads=threads)]

    def encode_batch_to_numpy(
        self, texts: Iterable[str], allowed_special: Collection[str] | None = None, *, threads: int | None = None
    ) -> list[np.ndarray]:
        """`encode_to_numpy` of each text. threads: at most; None for one for each processor, up to 8.

        Raises as `encode` does, and ValueError for less than one thread.
        """
        if isinstance(texts, str):
            raise ValueError("texts: expected a list of str, found one str; use encode")
        allowed = None if allowed_special is None else self._allowed(allowed_special)
        groups = grouped(texts, BATCH_CHARACTERS)
        workers = min(thread_count(threads), len(groups))
        if workers <= 1:
            return [ids for group in groups for ids in self._encode_group(group, allowed)]
        with ThreadPoolExecutor(workers) as pool:
            return [ids for made in pool.map(lambda group: self._encode_group(group, allowed), groups) for ids in made]

    def _encode_group(self, texts: list[str], allowed: frozenset[str] | None) -> list[np.ndarray]:
        """Ids of each text; those without special tokens, which are most, all at once."""
        plain_texts = [allowed is None or not self._has_special(text) for text in texts]
        try:
            found = iter(self._engines.encode_many([text for text, plain in zip(texts, plain_texts, strict=True) if plain]))
        except UnicodeEncodeError:  # which of them it was, and where, is for `_encode` to say
            return [self._encode(text, allowed, 0) for text in texts]
        pairs = zip(texts, plain_texts, strict=True)
        return [next(found) if plain else self._encode(text, allowed, 0) for text, plain in pairs]

    def encode_iterable(self, chunks: Iterable[str], allowed_special: Collection[str] = ()) -> Iterator[int]:
        """Ids of a text that comes in chunks: those of `encode` of the whole, however it is cut.

        Memory is bounded by the size of a chunk and a constant, but for two rare kinds of text that `streaming` names. Raises
        as `encode` does, when it comes to the place; characters are counted from the beginning of the whole.
        """
        allowed = self._allowed(allowed_special)

        def encode(text: str, start: int) -> np.ndarray:
            return self._encode(text, allowed, start)

        for ids in StreamEncoder(self.vocabulary, self.pattern, self._engines, encode, size=PIECE).ids(chunks):
            yield from self._list(ids)

    def _allowed(self, allowed_special: Collection[str]) -> frozenset[str]:
        if isinstance(allowed_special, str) and allowed_special != "all":
            allowed_special = (allowed_special,)
        allowed = frozenset(self.special_tokens if allowed_special == "all" else allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special: expected some of {self.special_tokens}, found {sorted(unknown)}")
        return allowed

    def _encode(
        self,
        text: str,
        allowed: frozenset[str] | None,
        start: int,
        *,
        encode_many: Callable[[Sequence[str]], list[np.ndarray]] | None = None,
    ) -> np.ndarray:
        """allowed: special tokens that stand for their ids, None: all is text. start: of `text` in the whole, for messages."""
        encode_many = encode_many or self._engines.encode_many
        if not isinstance(text, str):
            raise TypeError(f"expected text as str, found {type(text).__name__}")
        finder = special_pattern(self.special_tokens) if allowed is not None and self._has_special(text) else None
        between, specials, at = [], [], 0
        for match in finder.finditer(text) if finder else ():
            if allowed is not None and match[0] not in allowed:
                raise ValueError(
                    f"expected text without special tokens, found {match[0]!r} at character {start + match.start()}; "
                    "allow it with allowed_special, or encode it as text with encode_ordinary"
                )
            between.append(text[at : match.start()])
            specials.append(np.array([self.special_ids[match[0]]], np.int32))
            at = match.end()
        try:
            found = encode_many([*between, text[at:]])
        except UnicodeEncodeError:
            where = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
            raise ValueError(
                f"expected Unicode text, found the lone surrogate U+{ord(text[where]):04X} at character {start + where}, "
                "which no UTF-8 stands for; read the text with errors='replace'"
            ) from None
        if not specials:
            return found[0]
        return np.concatenate([ids for pair in itertools.zip_longest(found, specials, fillvalue=_NONE) for ids in pair])

    def _portably(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._engines.portable.encode(text) for text in texts]

    def _has_special(self, text: str) -> bool:
        """Whether there may be a special token in `text`; False is certain."""
        return any(start in text for start in special_starts(self.special_tokens))

    def _list(self, ids: np.ndarray) -> list[int]:
        """ids as Python integers, one object for each: a third of the time of `tolist`, and a fifth of the memory."""
        _, addresses = self._integers
        # Looked up as addresses, so that only the list counts references; an array over foreign memory counts none.
        found = addresses.take(ids)
        return np.ndarray(found.shape, object, found).tolist()

    @cached_property
    def _integers(self) -> tuple[np.ndarray, np.ndarray]:
        """The integers below the vocabulary's size, which live as long as this, and where they are."""
        integers = np.arange(self.vocab_size).astype(object)
        return integers, np.ndarray(integers.shape, np.intp, integers)

    def encode_document(self, text: str) -> np.ndarray:
        """A document as it is trained on: BOS, the ids of its text, EOS; int32."""
        ids = self._encode(text, None, 0)
        return np.concatenate([np.array([self.bos_id], np.int32), ids, np.array([self.eos_id], np.int32)])

    # ---- ids to text ---------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; a special token stands for its text. ids: integers of Python or NumPy.

        Raises ValueError for an integer that is no id, TypeError for what is no integer.
        """
        return self._engines.decode(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    # ---- to the disk and back ------------------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the artifact into a new directory, whole or not at all. Raises InputError where it is in use."""
        with new_artifact(directory) as temporary:
            self.save_into(temporary)

    def save_into(self, directory: Path) -> None:
        """Write the files of the artifact into an empty directory, which `new_artifact` makes one."""
        (directory / FILE).write_bytes(self._content())
        self.manifest.save(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, engine: Choice = "auto") -> Tokenizer:
        """Read an artifact, verify every byte, and compare what it makes of the probe text with what it promises.

        Raises ContractError where anything differs, InputError where there is no tokenizer, ValueError for another engine.
        """
        require_choice(engine)
        root = Path(directory)
        manifest = Manifest.load(root, KIND)
        manifest.require_files(root)
        if set(manifest.files) != {FILE}:
            raise ContractError(KIND, artifact=root, expected=f"the file {FILE}", found=sorted(manifest.files))
        content = parse((root / FILE).read_bytes(), artifact=root / FILE)
        try:
            tokenizer = cls(**content, provenance=manifest.provenance, engine=engine)
        except (ValueError, TypeError) as error:
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
