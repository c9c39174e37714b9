"""Bytes as text that a person can see: spaces, line ends, control characters, and what is no UTF-8."""

from __future__ import annotations

import unicodedata

_SIGNS = {chr(i): chr(0x2400 + i) for i in range(32)} | {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # categories whose characters show nothing, or turn the line around


def visible(raw: bytes) -> str:
    """`raw` as one line of text: `·` for a space, `⏎` for a line feed, `⇥` for a tab, `\\xff` for a byte that is no UTF-8.

    Characters that show nothing of their own, such as the zero width joiner and marks of direction, are written as `\\u200d`;
    so is a combining mark that has nothing in `raw` to stand on. It is for reading: text can hold these signs itself.
    """
    return "".join([shown for shown, _ in signs(raw)])


def signs(raw: bytes) -> list[tuple[str, bool]]:
    """The parts of `visible(raw)`, one a character or byte, each with whether it stands for another."""
    parts: list[tuple[str, bool]] = []
    for letter in raw.decode(errors="surrogateescape"):
        kind = unicodedata.category(letter)
        if "\udc80" <= letter <= "\udcff":
            parts.append((f"\\x{ord(letter) - 0xDC00:02x}", True))
        elif letter in _SIGNS:
            parts.append((_SIGNS[letter], True))
        elif kind in _UNSEEN or (kind[0] == "M" and (not parts or parts[-1][1])):
            parts.append((f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}", True))
        else:
            parts.append((letter, False))
    return parts


def is_text(raw: bytes) -> bool:
    """Whether `raw` is valid UTF-8 by itself."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
