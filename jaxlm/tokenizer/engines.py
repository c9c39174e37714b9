"""The two engines of a tokenizer, which give the same ids: Python and NumPy, and compiled loops where `choosing` has them."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.tokenizer.choosing import ENCODING, Choice, require_choice
from jaxlm.tokenizer.portable import Portable
from jaxlm.tokenizer.pretoken import pieces
from jaxlm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from jaxlm.tokenizer.compiled.decode import Decoder
    from jaxlm.tokenizer.compiled.encode import Engine

LONGEST = 1 << 27  # characters of a text up to which compiled code is given it whole: it can number bytes up to 2 GB
FEW_CHARACTERS, FEW_IDS = 128, 512  # of one call, which Python has done before a call of compiled code would be prepared


class Engines:
    """The two engines of one tokenizer. choice: "auto", or the one to use whatever it costs.

    probe: a text whose ids by both engines are compared before the compiled one is used.
    """

    def __init__(self, vocabulary: Vocabulary, pattern: str, *, choice: Choice, probe: str):
        require_choice(choice)
        self._vocabulary, self._pattern, self._choice, self._probe = vocabulary, pattern, choice, probe
        self.portable = Portable(vocabulary, pattern)
        self._compiled: tuple[Engine, Decoder] | None = None
        self._seen = 0
        if choice == "compiled":
            ENCODING.require()
            self._load()

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts without special tokens, int32 each; where compiled code is used the interpreter's lock is released for
        most of it.

        Raises UnicodeEncodeError for a lone surrogate, ValueError for a pre-token of 2 GB, which compiled code cannot number.
        """
        work = sum(map(len, texts))
        loaded = None if self._choice == "auto" and work <= FEW_CHARACTERS else self.compiled(work)
        if loaded is None:
            return [self.portable.encode(text) for text in texts]
        engine, _ = loaded
        if all(len(text) <= LONGEST for text in texts):
            return engine.encode([text.encode() for text in texts])
        none = np.zeros(0, np.int32)
        cut = (pieces((text,), size=LONGEST) for text in texts)
        return [np.concatenate([none, *(engine.encode([piece.encode()])[0] for piece in parts)]) for parts in cut]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for. Raises ValueError for an integer that is no id, TypeError for what is no integer."""
        if not isinstance(ids, list | tuple | np.ndarray):
            ids = list(ids)
        loaded = None if self._choice == "auto" and len(ids) <= FEW_IDS else self.compiled(len(ids))
        numbers = _int32(ids) if loaded else None
        if loaded and numbers is not None:
            return loaded[1].decode(numbers)
        vocab = self._vocabulary.vocab
        try:
            if set(map(type, ids)) == {int}:
                return b"".join(map(vocab.__getitem__, ids))
            return b"".join([vocab[operator.index(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"expected ids in {self._vocabulary.range}, found {error.args[0]}") from None

    def compiled(self, work: int) -> tuple[Engine, Decoder] | None:
        """The compiled encoder and decoder, if `work` more bytes or ids make them worth it or they are there already."""
        if self._compiled is not None or self._choice == "portable":
            return self._compiled
        self._seen += work
        if ENCODING.are_worth(self._seen):
            self._load()
        return self._compiled

    def _load(self) -> None:
        from jaxlm.tokenizer.compiled.decode import Decoder
        from jaxlm.tokenizer.compiled.encode import Engine

        engine, decoder = Engine(self._vocabulary, self._pattern), Decoder(self._vocabulary)
        probe, expected = self._probe.encode(), self.portable.encode(self._probe)
        _require_same("encoder", "ids", engine.encode([probe])[0], expected)
        _require_same("decoder", "bytes", np.frombuffer(decoder.decode(expected), np.uint8), np.frombuffer(probe, np.uint8))
        self._compiled = engine, decoder  # of threads that come here together, the last one's


def _require_same(what: str, unit: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raise ContractError where compiled code makes something else of the probe text than Python does."""
    if np.array_equal(found, expected):
        return
    same = min(len(found), len(expected))
    at = int(np.argmax(np.append(found[:same] != expected[:same], True)))
    raise ContractError(
        "tokenizer",
        artifact=f"the compiled {what}",
        expected=f"the {unit} of the probe text by Python, from place {at} on {expected[at : at + 8].tolist()}",
        found=found[at : at + 8].tolist(),
        remedy="Remove its code (*.o beside jaxlm/tokenizer/compiled, in ~/.cache/jaxlm), or use engine='portable'.",
    )


def _int32(ids: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """ids as a contiguous int32 array; None for what does not fit one, or is no list of integers."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.dtype.itemsize > 4 and ids.size and int(ids.max()) >= 1 << 31):
            return None
        return np.ascontiguousarray(ids, np.int32) if ids.size == 0 or int(ids.min()) >= 0 else None
    try:
        return np.frombuffer(struct.pack(f"{len(ids)}i", *ids), np.int32)  # in half the time of np.array
    except struct.error:
        return None
