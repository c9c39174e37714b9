#!/usr/bin/env python3
"""Write jaxlm/tokenizer/unicode_16.txt: the classes of code points that pre-tokens turn on, as Unicode 16.0 has them.

    pip install unicodedata2==16.0.0
    scripts/make_unicode_table.py

The table is made once and kept: ids must not move with the version of Unicode that a Python or a library happens to know.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import unicodedata2

VERSION = "16.0.0"
OUT = Path(__file__).resolve().parent.parent / "jaxlm" / "tokenizer" / "unicode_16.txt"
CLASSES = {
    "Lu": "U",
    "Lt": "U",
    "Ll": "l",
    "Lm": "c",
    "Lo": "c",
    "Mn": "m",
    "Mc": "m",
    "Me": "m",
    "Nd": "n",
    "Nl": "n",
    "No": "n",
}
# White_Space is no general category: these 25 code points (PropList.txt), the same since Unicode 6.3.
WHITE_SPACE = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
HEAD = f"""\
# Classes of code points in Unicode {VERSION}, made by scripts/make_unicode_table.py; what is not listed is of no class.
# U upper and title case letters, l lower case letters, c other letters, m marks, n numbers, s white space, r line ends.
"""


def class_of(code: int) -> str:
    """The letter of a code point's class, empty for none."""
    if code in (0xA, 0xD):
        return "r"
    return "s" if code in WHITE_SPACE else CLASSES.get(unicodedata2.category(chr(code)), "")


def main() -> int:
    """Write the table, one class a paragraph, ranges in hexadecimal."""
    if unicodedata2.unidata_version != VERSION:
        print(f"unicodedata2: expected Unicode {VERSION}, found {unicodedata2.unidata_version}", file=sys.stderr)
        return 1
    ranges: dict[str, list[str]] = {name: [] for name in "Ulcmnsr"}
    for name, run in groupby(range(0x110000), key=class_of):
        codes = list(run)
        if name:
            ranges[name].append(f"{codes[0]:X}" + (f"-{codes[-1]:X}" if len(codes) > 1 else ""))
    lines = [HEAD]
    for name, listed in ranges.items():
        line = name
        for item in listed:
            if len(line) + len(item) > 126:
                lines.append(f"{line}\n")
                line = name
            line += f" {item}"
        lines.append(f"{line}\n")
    OUT.write_text("".join(lines), encoding="ascii")
    print(f"{OUT}: {sum(map(len, ranges.values()))} ranges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
