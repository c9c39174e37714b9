"""Pre-tokens: the pieces of text that merges never cross, by a regular expression; and where a text can be cut.

The patterns are those of GPT-2 (Radford et al. 2019), of cl100k as it was published (OpenAI 2022) and as Llama 3 and others use
it, of cl100k_base as tiktoken has it since version 0.6 (white space at the end of the text is one pre-token, line ends or not),
and of o200k (OpenAI 2024). `\\s` is written as the Unicode property White_Space, since Python counts the separators
U+001C..U+001F to it and other implementations do not.

This is the definition; the compiled and the vectorised paths are held against it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import regex

from jaxlm.tokenizer.unicode import CASELESS, LOWER, MARK, NEWLINE, NUMBER, SPACE, UPPER, classes, code_points, represent

_SPACE = r"\p{White_Space}"
_NOT_SPACE = r"\P{White_Space}"

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

PATTERNS: dict[str, str] = {
    "gpt2": (
        r"'(?:[sdmt]|ll|ve|re)"
        r"| ?\p{L}+"
        r"| ?\p{N}+"
        rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+"
        rf"|{_SPACE}+(?!{_NOT_SPACE})"
        rf"|{_SPACE}+"
    ),
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}{1,3}"
        rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+[\r\n]*"
        rf"|{_SPACE}*[\r\n]+"
        rf"|{_SPACE}+(?!{_NOT_SPACE})"
        rf"|{_SPACE}+"
    ),
    "cl100k_base": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}{1,3}"
        rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+[\r\n]*"
        rf"|{_SPACE}+\Z"
        rf"|{_SPACE}*[\r\n]+"
        rf"|{_SPACE}+(?!{_NOT_SPACE})"
        rf"|{_SPACE}+"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}?"
        r"|\p{N}{1,3}"
        rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+[\r\n/]*"
        rf"|{_SPACE}*[\r\n]+"
        rf"|{_SPACE}+(?!{_NOT_SPACE})"
        rf"|{_SPACE}+"
    ),
}

_APOSTROPHE = NEWLINE + 1  # a class of its own, where letters come before it
WINDOW = 256  # characters among which a place to cut is looked for first


@functools.cache
def compiled(name: str) -> regex.Pattern[str]:
    """The pattern `name` of `PATTERNS`. Raises ValueError for another name."""
    if name not in PATTERNS:
        raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, found {name!r}")
    return regex.compile(PATTERNS[name], regex.V1)


def split(text: str, pattern: str) -> list[str]:
    """The pre-tokens of `text`, which joined are `text` again. pattern: a name in `PATTERNS`."""
    like = represent(text)
    if like is text:
        return compiled(pattern).findall(text)
    return [text[slice(*match.span())] for match in compiled(pattern).finditer(like)]


@functools.cache
def _cuts() -> np.ndarray:
    """Whether text can be cut between characters of two classes, bool [8, 9], and no pre-token changes on either side.

    Whatever stands elsewhere: in every pattern a run of numbers ends its pre-token, a run of letters is followed by marks or a
    contraction or ends it, no pre-token goes from a non-space to a space that is no line end, no alternative looks behind, and
    those that look ahead begin with a space. The second class may be `_APOSTROPHE`.
    """
    cuts = np.zeros((8, 9), bool)
    letters = [UPPER, LOWER, CASELESS]
    cuts[letters] = [kind not in (*letters, MARK, _APOSTROPHE) for kind in range(9)]
    cuts[NUMBER] = [kind != NUMBER for kind in range(9)]
    cuts[:SPACE, SPACE] = True
    return cuts


@functools.cache
def special_pattern(special_tokens: tuple[str, ...]) -> regex.Pattern[str] | None:
    """Finds special tokens, the longest first where one begins another; None where there are none."""
    if not special_tokens:
        return None
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, longest_first)), regex.V1)


@functools.cache
def special_starts(special_tokens: tuple[str, ...]) -> tuple[str, ...]:
    """What special tokens begin with: a text without any of these has none of them. Few, however many tokens there are."""
    return tuple(sorted({token[:2] for token in special_tokens}))


def pieces(chunks: Iterable[str], *, size: int, place: Callable[[str], int] | None = None) -> Iterator[str]:
    """Re-cut a stream of text where that changes nothing.

    size: characters that are collected before a place is looked for. place: where to cut a text that goes on, 0 for nowhere; by
    default the last place at which no pre-token changes. A stretch without one (a run of spaces or letters without end, which
    is one pre-token) is kept together, however long it is.
    """
    buffer, wanted = "", size
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            buffer += chunk[start : start + size]
            if len(buffer) < wanted:
                continue
            if cut := place(buffer) if place else last_cut(buffer, len(buffer), None):
                yield buffer[:cut]
                buffer = buffer[cut:]
            wanted = 2 * len(buffer) + size  # doubled, so that all the searches together take linear time
    if buffer:
        yield buffer


def last_cut(text: str, end: int, finder: regex.Pattern[str] | None) -> int:
    """The last place before `end` to cut, 0 where there is none. What `finder` finds is never cut."""
    cut = _last_place(text, end)
    for match in finder.finditer(text) if finder else ():
        if match.start() < cut < match.end():
            return match.start()
        if match.start() >= cut:
            break
    return cut


def _last_place(text: str, end: int) -> int:
    """The same without a finder. In most texts there is one near: growing windows are looked through, the last one first."""
    end, size = min(end, len(text)), WINDOW
    while end > 1:
        begin = max(end - size, 0)
        codes = code_points(text[begin:end])
        kinds = classes()[codes]
        after = np.where(codes[1:] == ord("'"), _APOSTROPHE, kinds[1:])
        places = np.flatnonzero(_cuts()[kinds[:-1], after])
        if len(places):
            return begin + int(places[-1]) + 1
        end, size = begin + 1, 8 * size
    return 0


def grouped(texts: Iterable[str], size: int) -> list[list[str]]:
    """Texts in order, in groups of about `size` characters. Raises TypeError for what is no str."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts: expected str, found {type(text).__name__}")
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(text)
        room -= len(text) + 1
    return groups
