"""The texts that a tokenizer is trained on, as pieces of UTF-8 of bounded size that no pre-token crosses.

Pieces are read when they are asked for. A text that is longer than a block is cut after a special token where it has any in
reach, else where `last_cut` finds that no pre-token changes; a block without such a place (one pre-token without end) is kept
together.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxlm.contract import InputError
from jaxlm.tokenizer.pretoken import last_cut, pieces, special_pattern

BLOCK = 1 << 20  # characters, of files bytes, that are held at once


class Corpus:
    """Takes texts, and keeps account of it. max_bytes: of UTF-8 to take, up to the last place to cut before; 0: all."""

    def __init__(self, special_tokens: tuple[str, ...], *, max_bytes: int = 0, block: int = BLOCK):
        self._finder = special_pattern(special_tokens)
        self._reach = max(map(len, special_tokens), default=0)
        self._max_bytes, self._block = max_bytes, block
        self._is_full = False
        self.documents = 0  # texts or files, the last perhaps in part
        self.bytes = 0  # of UTF-8 in them

    def of_texts(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Pieces of texts. Raises TypeError where one is no str, InputError where one has a lone surrogate."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts: expected an iterable of str, found {type(text).__name__}")
            yield from self._document(self._encoded([text] if len(text) <= self._block else self._cut([text])))
            if self._is_full:
                break

    def of_files(self, paths: Sequence[str | os.PathLike[str]]) -> Iterator[bytes]:
        """Pieces of UTF-8 files, line ends as they are. Raises InputError for a file that is none, or cannot be read."""
        for path in paths:
            try:
                yield from self._document(self._encoded(self._cut(_decoded(Path(path), self._block))))
            except OSError as error:
                raise InputError(f"{path}: expected a text file, found: {error.strerror}") from None
            if self._is_full:
                break

    def _document(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces of one text, as long as there is room."""
        self.documents += 1
        is_first = True
        for piece in pieces:
            room = self._max_bytes - self.bytes if self._max_bytes else len(piece) + 1
            self._is_full = len(piece) >= room
            if len(piece) > room:
                fits = len(piece[:room].decode(errors="ignore"))
                text = piece.decode()
                # A piece begins where a text can be cut, a text does not.
                piece = text[: last_cut(text, fits + 1, self._finder) or (fits if is_first else 0)].encode()
            self.bytes += len(piece)
            if piece:
                yield piece
            if self._is_full:
                break
            is_first = False

    def _encoded(self, pieces: Iterable[str]) -> Iterator[bytes]:
        number, start = self.documents - 1, 0
        for piece in pieces:
            try:
                yield piece.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"expected Unicode text, found the lone surrogate U+{ord(piece[error.start]):04X} at character "
                    f"{start + error.start} of text {number}, which no UTF-8 stands for; read the text with errors='replace'"
                ) from None
            start += len(piece)

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        """A text that comes in chunks, cut where that changes no pre-token."""
        return pieces(chunks, size=self._block, place=self._last_place)

    def _last_place(self, text: str) -> int:
        """Where to cut a text that goes on; 0 where that is not known yet."""
        end = len(text) - self._reach  # from here on a special token may only have begun
        after = 0
        for match in self._finder.finditer(text) if self._finder else ():
            if match.start() >= end:
                break
            after = match.end()
        return after or last_cut(text, end, self._finder)


def _decoded(path: Path, size: int) -> Iterator[str]:
    """The text of a file in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0  # of the bytes that the decoder has not given back yet
    with path.open("rb") as file:
        while True:
            raw = file.read(size)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: expected UTF-8, found the byte 0x{error.object[error.start]:02X} at byte {start + error.start} "
                    f"({error.reason}); convert the file, or take it out"
                ) from None
            if not raw:
                return
            start = file.tell() - len(decoder.getstate()[0])
            yield text
