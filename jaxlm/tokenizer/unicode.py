"""Classes of code points, as Unicode 16.0 has them, whatever version Python or the `regex` module knows.

A letter that a later version adds would move the boundaries of pre-tokens, and so the ids of the same text, with the version
of a library. The table is `unicode_16.txt`, made once by `scripts/make_unicode_table.py`.
"""

from __future__ import annotations

import codecs
import functools
from pathlib import Path

import numpy as np

codecs.lookup("utf-32-le")  # imported now: an import that a thread is at when the process is forked never ends in the child

OTHER, UPPER, LOWER, CASELESS, MARK, NUMBER, SPACE, NEWLINE = range(8)
CODES = 0x110000

_LETTERS = {"U": UPPER, "l": LOWER, "c": CASELESS, "m": MARK, "n": NUMBER, "s": SPACE, "r": NEWLINE}
# One code point of each class that is in it in every version, and plays no part of its own in any pattern.
_REPRESENTATIVES = ("!", "A", "a", "\u00aa", "\u0300", "0", "\t", "\n")
_LONG_S = 0x17F  # is an s where case does not matter, in contractions


@functools.cache
def classes() -> np.ndarray:
    """The class of every code point, uint8 [0x110000], read-only; surrogates and unassigned ones are OTHER."""
    table = np.zeros(CODES, np.uint8)
    for line in Path(__file__).with_name("unicode_16.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, *ranges = line.split()
            for item in ranges:
                first, _, last = item.partition("-")
                table[int(first, 16) : int(last or first, 16) + 1] = _LETTERS[name]
    table.setflags(write=False)
    return table


def code_points(text: str) -> np.ndarray:
    """The code points of `text`, uint32 [len(text)], lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@functools.cache
def _stand_ins() -> np.ndarray:
    table = np.array([ord(c) for c in _REPRESENTATIVES], np.uint32)[classes()]
    table[:128] = np.arange(128)
    table[_LONG_S] = _LONG_S
    return table


def represent(text: str) -> str:
    """`text` with every code point outside of ASCII replaced by one of its class that all versions know; as long as it.

    The patterns find in it what they would find in `text`, if their library had Unicode 16.0.
    """
    if text.isascii():
        return text
    return _stand_ins()[code_points(text)].astype("<u4").tobytes().decode("utf-32-le")
