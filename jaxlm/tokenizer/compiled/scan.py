"""Where a pre-token ends, for every pattern of `pretoken.PATTERNS`, over UTF-8 in memory.

The text is valid UTF-8 and followed by at least `PADDING` bytes 0xFF, which end every run. A class of code points is one bit,
so that belonging to one of several is one test; the parameter `table` is the address of what `table()` returns.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxlm.tokenizer import unicode
from jaxlm.tokenizer.compiled.jit import inlined
from jaxlm.tokenizer.compiled.memory import load_u8

PADDING = 32  # bytes 0xFF after the text; loads of 16 bytes may begin at its end
KINDS = {"gpt2": 0, "cl100k": 1, "cl100k_base": 2, "o200k": 3}

OTHER, UPPER, LOWER, CASELESS = 1 << unicode.OTHER, 1 << unicode.UPPER, 1 << unicode.LOWER, 1 << unicode.CASELESS
MARK, NUMBER, SPACE, NEWLINE = 1 << unicode.MARK, 1 << unicode.NUMBER, 1 << unicode.SPACE, 1 << unicode.NEWLINE
LETTER = UPPER | LOWER | CASELESS
WHITE = SPACE | NEWLINE
SYMBOL = OTHER | MARK  # neither white space nor letter nor number
HEAD = UPPER | CASELESS | MARK  # o200k: what a word may begin with, in its upper case part
TAIL = LOWER | CASELESS | MARK  # o200k: and in the part after it

APOSTROPHE, BLANK, SLASH = 0x27, 0x20, 0x2F


@functools.cache
def table() -> np.ndarray:
    """Bits of classes, uint8: 256 by the byte of UTF-8 (0 for what is not ASCII), then one for every code point."""
    points = np.left_shift(1, unicode.classes()).astype(np.uint8)
    by_byte = np.zeros(256, np.uint8)
    by_byte[:128] = points[:128]
    return np.concatenate([by_byte, points])


@inlined
def bits_and_width(text, table, at):
    """Class bit of the character at `at` in the lower 8 bits, its bytes above; class 0 for the padding."""
    first = np.int64(load_u8(text + at))
    if first < 0x80:
        return np.int64(load_u8(table + first)) | 0x100
    second = np.int64(load_u8(text + at + 1)) & 0x3F
    if first < 0xE0:
        return np.int64(load_u8(table + 256 + ((first & 0x1F) << 6 | second))) | 0x200
    third = np.int64(load_u8(text + at + 2)) & 0x3F
    if first < 0xF0:
        return np.int64(load_u8(table + 256 + ((first & 0x0F) << 12 | second << 6 | third))) | 0x300
    if first < 0xF8:
        fourth = np.int64(load_u8(text + at + 3)) & 0x3F
        return np.int64(load_u8(table + 256 + ((first & 0x07) << 18 | second << 12 | third << 6 | fourth))) | 0x400
    return np.int64(0x100)


@inlined
def run_end(text, table, at, classes):
    """The end of the run of characters of `classes` that begins at `at`; `at` where there is none."""
    while True:
        first = np.int64(load_u8(text + at))
        if np.int64(load_u8(table + first)) & classes:
            at += 1
        elif first < 0x80:
            return at
        else:
            found = bits_and_width(text, table, at)
            if not found & classes:
                return at
            at += found >> 8


@inlined
def digits_end(text, table, at):
    """The end of at most three numbers from `at` on."""
    for _ in range(3):
        found = bits_and_width(text, table, at)
        if not found & NUMBER:
            break
        at += found >> 8
    return at


@inlined
def contraction_end(text, at, fold):
    """The end of 's 't 'm 'd 'll 've 're at `at`, an apostrophe; `at` where there is none. fold: any case, the long s too."""
    one = np.int64(load_u8(text + at + 1))
    two = np.int64(load_u8(text + at + 2))
    if fold:
        if one == 0xC5 and two == 0xBF:
            return at + 3
        if 0x41 <= one <= 0x5A:
            one |= 0x20
        if 0x41 <= two <= 0x5A:
            two |= 0x20
    if one == 0x73 or one == 0x74 or one == 0x6D or one == 0x64:
        return at + 2
    if (one == 0x6C and two == 0x6C) or (two == 0x65 and (one == 0x76 or one == 0x72)):
        return at + 3
    return at


@inlined
def white_end(text, table, at, lines, whole):
    """The end of a pre-token that begins with white space, none of which opens a word.

    lines: it goes to the last line end in the run, if there is one. whole: at the end of the text, it is all of the run.
    """
    last, line, end = at, np.int64(-1), at
    while True:
        found = bits_and_width(text, table, end)
        if not found & WHITE:
            break
        last = end
        end += found >> 8
        if found & NEWLINE:
            line = end
    closing = not found & 0xFF
    if whole and closing:
        return end
    if lines and line >= 0:
        return line
    if closing or last == at:
        return end
    return last


@inlined
def gpt2_end(text, table, at):
    """The end of the pre-token of GPT-2's pattern that begins at `at`."""
    first = np.int64(load_u8(text + at))
    if first == APOSTROPHE:
        end = contraction_end(text, at, False)
        if end > at:
            return end
    begin = at
    if first == BLANK:
        begin = at + 1
    found = bits_and_width(text, table, begin)
    after = begin + (found >> 8)
    if found & LETTER:
        return run_end(text, table, after, LETTER)
    if found & SYMBOL:
        return run_end(text, table, after, SYMBOL)
    if found & NUMBER:
        return run_end(text, table, after, NUMBER)
    return white_end(text, table, at, False, True)


@inlined
def symbols_or_white_end(text, table, at, first, kind):
    """The last alternatives of cl100k and o200k, where no word, contraction or number begins at `at`."""
    begin = at
    if first == BLANK:
        begin = at + 1
    found = bits_and_width(text, table, begin)
    if not found & SYMBOL:
        return white_end(text, table, at, True, kind == 2)
    end = run_end(text, table, begin, SYMBOL)
    while True:
        byte = load_u8(text + end)
        if byte != 0x0A and byte != 0x0D and not (kind == 3 and byte == SLASH):
            return end
        end += 1


@inlined
def cl100k_end(text, table, at, kind):
    """The end of the pre-token of cl100k's pattern that begins at `at`."""
    first = np.int64(load_u8(text + at))
    if first == APOSTROPHE:
        end = contraction_end(text, at, True)
        if end > at:
            return end
    found = bits_and_width(text, table, at)
    after = at + (found >> 8)
    if found & LETTER:
        return run_end(text, table, after, LETTER)
    if found & NUMBER:
        return digits_end(text, table, at)
    if not found & NEWLINE:
        end = run_end(text, table, after, LETTER)
        if end > after:
            return end
    return symbols_or_white_end(text, table, at, first, kind)


@inlined
def word_end(text, table, at):
    """The end of o200k's words, [HEAD]*[TAIL]+ or else [HEAD]+[TAIL]*, without contraction; `at` where there is none."""
    end, both = at, np.int64(-1)
    while True:
        found = bits_and_width(text, table, end)
        if not found & HEAD:
            break
        end += found >> 8
        if found & TAIL:
            both = end
    if found & LOWER:
        return run_end(text, table, end, TAIL)
    if both >= 0:  # the upper case part gives back as much as the other part needs: one character
        return both
    return end


@inlined
def tail_end(text, table, at):
    """The end of the first of o200k's two kinds of words, [HEAD]*[TAIL]+; `at` where there is none."""
    end = word_end(text, table, at)
    if end > at and not (bits_and_width(text, table, at) & TAIL):
        # All upper case: only the second kind matched.
        upper = run_end(text, table, at, UPPER)
        if upper == end:
            return at
    return end


@inlined
def o200k_end(text, table, at):
    """The end of the pre-token of o200k's pattern that begins at `at`."""
    first = np.int64(load_u8(text + at))
    found = bits_and_width(text, table, at)
    after = at + (found >> 8)
    end = np.int64(-1)
    if found & LETTER:
        end = word_end(text, table, at)
    elif found & NUMBER:
        return digits_end(text, table, at)
    elif found & (OTHER | SPACE):
        end = word_end(text, table, after)
        if end == after:
            end = np.int64(-1)
    elif found & MARK:  # it may open the word or belong to it, and opens it only if a word of the first kind follows
        end = tail_end(text, table, after)
        if end == after:
            end = word_end(text, table, at)
    if end < 0:
        return symbols_or_white_end(text, table, at, first, 3)
    if load_u8(text + end) == APOSTROPHE:
        return contraction_end(text, end, True)
    return end


@inlined
def pretoken_end(kind, text, table, at):
    """The end of the pre-token that begins at `at`, which is before the end of the text. kind: a number in `KINDS`."""
    if kind == 0:
        return gpt2_end(text, table, at)
    if kind == 3:
        return o200k_end(text, table, at)
    return cl100k_end(text, table, at, kind)
