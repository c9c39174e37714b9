"""Mojibake: UTF-8 that was read as Latin-1 or cp1252 and encoded again, so that `é` became `Ã©` and `’` became `â€™`.

It is valid Unicode, and a model learns to write it. What gives it away: sequences of characters which, taken as bytes of
cp1252, are UTF-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxlm.contract import InputError

PART = 0.5  # of a document's characters beyond ASCII, in such sequences, from which on it counts
ENOUGH = 8  # sequences in all; fewer can be chance

# cp1252 in 0x80..0x9f, and Latin-1 where it has none, as the web reads it.
_BYTE_OF = {ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)): byte for byte in range(0x80, 0xA0)}
_CONTINUED = "".join(map(re.escape, [*map(chr, _BYTE_OF), *map(chr, range(0x80, 0xC0))]))
# Of leads of two bytes those of scripts that are written: accents and Latin, Greek, Cyrillic, Hebrew, Arabic. A no-break space
# after a lead of three is more often French (`é »`) than Chinese, and after `×` more often a number than Hebrew.
_SEQUENCE = re.compile(
    f"[\u00c2-\u00c5\u00ce-\u00d1\u00d8\u00d9][{_CONTINUED}]|\u00d7(?!\u00a0)[{_CONTINUED}]"
    f"|[\u00e0-\u00ef](?!\u00a0)[{_CONTINUED}]{{2}}|[\u00f0-\u00f4](?!\u00a0)[{_CONTINUED}]{{3}}"
)
_BEYOND_ASCII = re.compile("[^\x00-\x7f]")


def sequences(text: str) -> list[str]:
    """What stands in `text` as the bytes, in cp1252 or Latin-1, of a character of UTF-8."""
    return [found for found in _SEQUENCE.findall(text) if _is_utf8(found.translate(_BYTE_OF))]


def _is_utf8(characters: str) -> bool:
    try:
        characters.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class Mojibake:
    """What was seen of it: documents with characters beyond ASCII, those among them that are mojibake, its sequences, and
    where the first one is."""

    beyond_ascii: int = 0
    documents: int = 0
    sequences: int = 0
    first: str = ""

    def see(self, text: str, origin: str) -> bool:
        """Count a document, and say whether it is mojibake. Costs nothing for ASCII, some ns a character for other text."""
        if text.isascii():
            return False
        self.beyond_ascii += 1
        found = sequences(text)
        if not found or sum(map(len, found)) < PART * sum(1 for _ in _BEYOND_ASCII.finditer(text)):
            return False
        self.documents += 1
        self.sequences += len(found)
        if not self.first:
            self.first = f"{origin}, {found[0]!r} for {found[0].translate(_BYTE_OF).encode('latin-1').decode()!r}"
        return True

    def require_little(self, most: float) -> None:
        """Raise InputError, naming the first, where more than the share `most` of the documents beyond ASCII are mojibake."""
        if self.sequences >= ENOUGH and self.documents > most * self.beyond_ascii:
            raise InputError(
                f"--data.source: expected UTF-8 that was decoded once, found {self.documents} of {self.beyond_ascii} documents "
                f"with characters beyond ASCII that were decoded as cp1252 or Latin-1 and encoded again, the first one "
                f"{self.first}; read them as UTF-8 where they come from, or allow it with --data.max-mojibake"
            )
