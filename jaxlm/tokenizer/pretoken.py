"""Pre-tokens: the pieces of text that merges never cross, by a regular expression; and where a text can be cut.

The patterns are those of GPT-2 (Radford et al. 2019) and of cl100k (OpenAI 2022). `\\s` is written as the Unicode property
White_Space, since Python counts the separators U+001C..U+001F to it and other implementations do not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import regex

_SPACE = r"\p{White_Space}"
_NOT_SPACE = r"\P{White_Space}"

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
}

# A cut here changes no pre-token on either side, whatever stands elsewhere: no alternative of either pattern crosses from a
# letter or number to anything else, nor from a non-space to a space that is no line end; and none looks behind.
_CUT = r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{N}])" + rf"|(?<={_NOT_SPACE})(?=[{_SPACE}--\r\n])"


@functools.cache
def compiled(name: str) -> regex.Pattern:
    """The pattern `name` of `PATTERNS`. Raises ValueError for another name."""
    if name not in PATTERNS:
        raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, found {name!r}")
    return regex.compile(PATTERNS[name], regex.V1)


@functools.cache
def _cut() -> regex.Pattern:
    return regex.compile(_CUT, regex.V1)


@functools.cache
def special_pattern(special_tokens: tuple[str, ...]) -> regex.Pattern | None:
    """Finds special tokens, the longest first where one begins another; None where there are none."""
    if not special_tokens:
        return None
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, longest_first)), regex.V1)


def pieces(chunks: Iterable[str], special_tokens: tuple[str, ...], *, size: int) -> Iterator[str]:
    """Re-cut a stream of text so that pre-tokens and special tokens of the pieces are those of the whole.

    size: characters that are collected before a cut is looked for. A stretch without a place to cut (a letter run without
    end) is kept together, however long it is.
    """
    finder = special_pattern(special_tokens)
    reach = max(map(len, special_tokens), default=0)
    buffer, wanted = "", size
    for chunk in chunks:
        buffer += chunk
        if len(buffer) < wanted:
            continue
        cut = _last_cut(buffer, len(buffer) - reach, finder)
        if cut:
            yield buffer[:cut]
            buffer = buffer[cut:]
        wanted = len(buffer) + size
    if buffer:
        yield buffer


def _last_cut(text: str, end: int, finder: regex.Pattern | None) -> int:
    """The last place before `end` to cut, 0 where there is none. A special token is never cut."""
    found = _cut().search(text, 0, max(end, 0))
    # The end of the searched stretch is no evidence of what follows; the match is one position earlier at least.
    cut = found.start() if found else 0
    for match in finder.finditer(text) if finder else ():
        if match.start() < cut < match.end():
            return match.start()
    return cut
