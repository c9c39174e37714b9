"""Which code points are letters and numbers: those of Unicode 16.0, whatever version the `regex` module knows.

A letter that a later version adds would move the boundaries of pre-tokens, and so the ids of the same text, with the version
of a library. Before text is split, such code points are masked by a noncharacter, which no version will ever assign. (The 25
code points of White_Space have not changed since Unicode 6.3.)
"""

from __future__ import annotations

import re

MASK = "\uffff"

# Letters and numbers that came after 16.0, in hexadecimal: the difference between the classes L and N of `regex` 2026.11.15 and
# those of Unicode 16.0. Most are single additions to old blocks; the long ranges are new scripts and ideographs.
_LATER_LOW = "0558 058B-058C 088F 0C5C 0CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D"  # below U+10000
_LATER_HIGH = (
    "107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DE0-11DE9 11DF1 1246F 12475-1247F 12550-12686 "
    "16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 "
    "1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 "
    "1E6FE-1E6FF 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)


def _members(ranges: str) -> str:
    """'0558 058B-058C' as the inside of a character class of `re`."""
    return re.sub(r"[0-9A-F]+", lambda digits: f"\\U{int(digits[0], 16):08x}", ranges).replace(" ", "")


# `re` looks a class below U+10000 up in a bitmap (some 150 MB/s), but walks through the ranges of one above (some 10 MB/s);
# hence the latter only in texts that have anything above at all.
_LOW = re.compile(f"[{_members(_LATER_LOW)}]")
_HIGH = re.compile(f"[{_members(_LATER_HIGH)}]")
_ABOVE = re.compile("[\U00010000-\U0010ffff]")


def mask_later(text: str) -> str:
    """`text` with every letter and number that is none in Unicode 16.0 replaced by U+FFFF; as long as `text`."""
    if text.isascii():
        return text
    if _LOW.search(text):
        text = _LOW.sub(MASK, text)
    if _ABOVE.search(text) and _HIGH.search(text):
        text = _HIGH.sub(MASK, text)
    return text
