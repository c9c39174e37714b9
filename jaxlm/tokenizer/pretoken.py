"""Pre-tokens: the pieces of text that merges never cross, by a regular expression; and where a text can be cut.

The patterns are those of GPT-2 (Radford et al. 2019), of cl100k as it was published (OpenAI 2022) and as Llama 3 and others use
it, of cl100k_base as tiktoken has it since version 0.6 (white space at the end of the text is one pre-token, line ends or not),
and of o200k (OpenAI 2024). `\\s` is written as the Unicode property White_Space, since Python counts the separators
U+001C..U+001F to it and other implementations do not.

This is the definition; the compiled and the vectorised paths are held against it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import regex

from jaxlm.tokenizer.unicode import represent

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

# Between these neighbours text can be cut, and no pre-token changes on either side, whatever stands elsewhere: in every pattern
# a run of numbers ends its pre-token, a run of letters is followed by marks or a contraction or ends it, no pre-token goes from
# a non-space to a space that is no line end, no alternative looks behind, and those that look ahead begin with a space.
_CUT = (
    r"(?r)(?<=\p{L})(?=[^\p{L}\p{M}'])|(?<=\p{N})(?=\P{N})"
    rf"|(?<={_NOT_SPACE})(?=[{_SPACE}--\r\n])"
)


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
def _cut() -> regex.Pattern[str]:
    return regex.compile(_CUT, regex.V1)


@functools.cache
def special_pattern(special_tokens: tuple[str, ...]) -> regex.Pattern[str] | None:
    """Finds special tokens, the longest first where one begins another; None where there are none."""
    if not special_tokens:
        return None
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, longest_first)), regex.V1)


def pieces(chunks: Iterable[str], special_tokens: tuple[str, ...], *, size: int) -> Iterator[str]:
    """Re-cut a stream of text so that pre-tokens and special tokens of the pieces are those of the whole.

    size: characters that are collected before a cut is looked for. A stretch without a place to cut (a run of spaces or letters
    without end, which is one pre-token) is kept together, however long it is.
    """
    finder = special_pattern(special_tokens)
    reach = max(map(len, special_tokens), default=0)
    buffer, wanted = "", size
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            buffer += chunk[start : start + size]
            if len(buffer) < wanted:
                continue
            if cut := last_cut(buffer, len(buffer) - reach, finder):
                yield buffer[:cut]
                buffer = buffer[cut:]
            wanted = 2 * len(buffer) + size  # doubled, so that all the searches together take linear time
    if buffer:
        yield buffer


def last_cut(text: str, end: int, finder: regex.Pattern[str] | None) -> int:
    """The last place before `end` to cut, 0 where there is none. What `finder` finds is never cut."""
    found = _cut().search(represent(text), 0, max(end, 0))
    cut = found.start() if found else 0
    for match in finder.finditer(text) if finder else ():
        if match.start() < cut < match.end():
            return match.start()
        if match.start() >= cut:
            break
    return cut


def grouped(texts: Iterable[str], size: int) -> list[list[str]]:
    """Texts in order, in groups of about `size` characters."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(text)
        room -= len(text) + 1
    return groups
