"""Which code encodes and decodes: Python and NumPy at once, compiled loops as soon as they are worth their price.

Both give the same ids. Importing numba takes a third of a second, in which a short text is encoded many times over; compiling,
where no machine code is on the disk yet, takes seconds. The price is paid when so much text has come through that it pays.
"""

from __future__ import annotations

import operator
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.tokenizer.portable import Portable
from jaxlm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from jaxlm.tokenizer.compiled.decode import Decoder
    from jaxlm.tokenizer.compiled.encode import Engine

Choice = Literal["auto", "portable", "compiled"]
READY_BYTES = 1 << 18  # after so much text compiled code is used, if it is on the disk
COMPILE_BYTES = 1 << 22  # after so much it is made


class Engines:
    """The two engines of one tokenizer. choice: "auto", or the one to use whatever it costs.

    probe: a text whose ids by both engines are compared before the compiled one is used.
    """

    def __init__(self, vocabulary: Vocabulary, pattern: str, *, choice: Choice, probe: str):
        if choice not in get_args(Choice):
            raise ValueError(f"engine: expected one of {', '.join(get_args(Choice))}, found {choice!r}")
        self._vocabulary, self._pattern, self._choice, self._probe = vocabulary, pattern, choice, probe
        self.portable = Portable(vocabulary, pattern)
        self._compiled: tuple[Engine, Decoder] | None = None
        self._lock = threading.Lock()
        self._seen = 0
        if choice == "compiled":
            self._load()

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text without special tokens, int32. Raises UnicodeEncodeError for a lone surrogate."""
        if self.compiled(len(text)) is None:
            return self.portable.encode(text)
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same for several texts at once; the interpreter's lock is released for most of it where compiled code is used."""
        loaded = self.compiled(sum(map(len, texts)))
        if loaded is None:
            return [self.portable.encode(text) for text in texts]
        return loaded[0].encode([text.encode() for text in texts])

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for. Raises ValueError for an integer that is no id, TypeError for what is no integer."""
        if not isinstance(ids, list | tuple | np.ndarray):
            ids = list(ids)
        loaded = self.compiled(len(ids))
        numbers = _int32(ids) if loaded else None
        if loaded and numbers is not None:
            return loaded[1].decode(numbers)
        try:
            return b"".join([self._vocabulary.vocab[operator.index(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"expected ids in 0..{self._vocabulary.size - 1}, found {error.args[0]}") from None

    def compiled(self, work: int) -> tuple[Engine, Decoder] | None:
        """The compiled encoder and decoder, if `work` more bytes or ids make them worth it or they are there already."""
        if self._compiled is not None or self._choice == "portable":
            return self._compiled
        self._seen += work
        if _is_loaded() or (self._seen >= READY_BYTES and (_is_on_disk() or (self._seen >= COMPILE_BYTES and _can_compile()))):
            self._load()
        return self._compiled

    def _load(self) -> None:
        from jaxlm.tokenizer.compiled.decode import Decoder
        from jaxlm.tokenizer.compiled.encode import Engine

        with self._lock:
            if self._compiled is not None:
                return
            engine = Engine(self._vocabulary, self._pattern)
            found, expected = engine.encode([self._probe.encode()])[0], self.portable.encode(self._probe)
            if not np.array_equal(found, expected):
                same = min(len(found), len(expected))
                at = int(np.argmax(np.append(found[:same] != expected[:same], True)))
                raise ContractError(
                    "tokenizer",
                    artifact="the compiled encoder",
                    expected=f"the ids of the probe text by Python, from place {at} on {expected[at : at + 8].tolist()}",
                    found=found[at : at + 8].tolist(),
                    remedy="Remove numba's files (*.nbi, *.nbc) beside jaxlm/tokenizer/compiled, or use engine='portable'.",
                )
            self._compiled = engine, Decoder(self._vocabulary.vocab)


def _is_loaded() -> bool:
    """Whether this process has the machine code already."""
    module = sys.modules.get("jaxlm.tokenizer.compiled.encode")
    return module is not None and hasattr(module, "encode_texts") and module.encode_texts.is_loaded


def _is_on_disk() -> bool:
    from jaxlm.tokenizer.compiled.encode import encode_texts

    return encode_texts.is_ready


def _can_compile() -> bool:
    from jaxlm.tokenizer.compiled.jit import has_compiler

    return has_compiler()


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
