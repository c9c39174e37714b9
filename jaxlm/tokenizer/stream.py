"""Ids to text, one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxlm.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Text as it becomes certain. All that `push` and `flush` return together is `tokenizer.decode` of all ids.

    Bytes that may still become a character wait; bytes that cannot are U+FFFD, as in `decode`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that this id completes, possibly none. Raises ValueError for an id that is none."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What is left, as far as it is text; the decoder starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
