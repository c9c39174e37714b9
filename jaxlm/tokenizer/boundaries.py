"""Where pre-tokens begin, as masks over code points: what the patterns find from left to right, found everywhere at once.

A pattern never looks far: whether a pre-token begins at a character follows from the characters beside it, from how long the
run of numbers already is, and from where a run of white space has its line ends. The functions are written over an array
namespace, `numpy` or `jax.numpy`; arrays are [..., T], characters along the last axis.

A contraction takes "'" and letters, and is one only where "'" begins a pre-token. Neither depends on another contraction: it
ends in a letter, after which "'" begins a pre-token in any case, and two of them cannot overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.tokenizer.unicode import NEWLINE

MASKS = ("gpt2", "cl100k", "cl100k_base")  # the patterns that have one
END = NEWLINE + 1  # the class of what comes after the text

# What the masks tell apart of the classes of `unicode.classes`, and END: letters, numbers, spaces, line ends, and the rest.
_REST, _LETTER, _NUMBER, _SPACE, _LINE, _END = range(6)
_KINDS = np.array([_REST, _LETTER, _LETTER, _LETTER, _REST, _NUMBER, _SPACE, _LINE, _END], np.uint8)
_BLANK, _QUOTE, _LONG_S = 0x20, 0x27, 0x17F
_CASE = 0x20  # the bit in which capitals differ from small letters

Array = Any  # numpy.ndarray or jax.Array
Cummax = Callable[[Array], Array]


def cummax(x: Array) -> Array:
    """The greatest of each element and those before it, along the last axis."""
    return np.maximum.accumulate(x, axis=-1)


def boundaries(codes: Array, classes: Array, pattern: str, *, xp: Any = np, cummax: Cummax = cummax) -> Array:
    """Whether a pre-token begins at each character, bool [..., T].

    codes: code points, any integer dtype [..., T], 0 after the text. classes: those of `unicode.classes`, uint8 [..., T], END
    after the text. pattern: a name in `MASKS`; raises ValueError for another. xp: the namespace of the arrays. cummax: the
    function of that name over `xp`.
    """
    if pattern not in MASKS:
        raise ValueError(f"pattern: expected one with a mask, {', '.join(MASKS)}, found {pattern!r}")
    kinds = xp.asarray(_KINDS)[classes]
    if pattern == "gpt2":
        begins = _gpt2(codes, kinds, xp)
    else:
        begins = _cl100k(codes, kinds, xp, cummax, whole_end=pattern == "cl100k_base")
        codes = codes | _CASE
    one, two = _contractions(codes, begins & (codes == _QUOTE), pattern != "gpt2", xp)
    begins = (begins & ~_at(one | two, -1, False, xp)) | _at(one, -2, False, xp) | _at(two, -3, False, xp)
    return begins & (kinds != _END)


def _at(x: Array, by: int, fill: Any, xp: Any) -> Array:
    """What stands `by` places further (before, where negative); `fill` beyond the ends."""
    by = max(min(by, x.shape[-1]), -x.shape[-1])
    beyond = xp.full((*x.shape[:-1], abs(by)), fill, x.dtype)
    parts = (x[..., by:], beyond) if by > 0 else (beyond, x[..., : x.shape[-1] + by])
    return xp.concatenate(parts, axis=-1)


def _contractions(codes: Array, quotes: Array, any_case: bool, xp: Any) -> tuple[Array, Array]:
    """Where "'" is followed by one letter that makes it a contraction, and where by two. codes: in lower case for any_case."""
    first, second = _at(codes, 1, 0, xp), _at(codes, 2, 0, xp)
    one = (first == ord("s")) | (first == ord("t")) | (first == ord("m")) | (first == ord("d"))
    if any_case:
        one = one | (first == _LONG_S)
    two = ((first == ord("l")) & (second == ord("l"))) | (((first == ord("v")) | (first == ord("r"))) & (second == ord("e")))
    return quotes & one, quotes & two


def _gpt2(codes: Array, kinds: Array, xp: Any) -> Array:
    """Runs of one kind begin a pre-token, or join the blank before them; the last space of several begins one of its own."""
    kinds = xp.where(kinds == _LINE, np.uint8(_SPACE), kinds)
    before, after = _at(kinds, -1, _END, xp), _at(kinds, 1, _END, xp)
    space = kinds == _SPACE
    joins = (_at(codes, -1, 0, xp) == _BLANK) & ~space
    last = space & (after != _SPACE) & (after != _END)
    return xp.where(kinds != before, ~joins, last)


def _cl100k(codes: Array, kinds: Array, xp: Any, cummax: Cummax, *, whole_end: bool) -> Array:
    """cl100k, and with `whole_end` cl100k_base, where white space at the end of the text is one pre-token."""
    before = _at(kinds, -1, _END, xp)
    blank = codes == _BLANK
    blank_before = _at(blank, -1, False, xp)

    # Letters join the space before them, and a single other character, unless a blank or another has taken that one.
    taken = _at(blank_before, -1, False, xp) | (_at(before, -1, _END, xp) == _REST)
    letter = (before != _LETTER) & (before != _SPACE) & ((before != _REST) | taken)

    # Numbers come in threes.
    index = xp.broadcast_to(xp.arange(kinds.shape[-1], dtype=np.int32), kinds.shape)
    first = (kinds == _NUMBER) & (before != _NUMBER)
    number = (index - cummax(xp.where(first, index, 0))) % 3 == 0

    # The rest joins the blank before it.
    rest = (before != _REST) & ~blank_before

    # Line ends right after the rest belong to it. What is left of the white space goes to its last line end, then to its last
    # space but one; the last space begins what follows. Of the nearest place that a question is about, an odd number says yes.
    doubled = 2 * index + 2
    line, space = kinds == _LINE, (kinds == _SPACE) | (kinds == _LINE)
    attached = line & (cummax(xp.where(line, 0, doubled + (kinds == _REST).astype(np.int32))) & 1 == 1)
    opens = ~((before == _SPACE) | (before == _LINE)) | _at(attached, -1, False, xp)
    ahead = xp.where(kinds == _SPACE, 0, doubled[..., ::-1] + line.astype(np.int32))
    more_lines = cummax(ahead[..., ::-1])[..., ::-1] & 1 == 1
    after = _at(kinds, 1, _END, xp)
    last = (after != _SPACE) & (after != _LINE) & (after != _END)
    inside = (kinds == _SPACE) & (((before == _LINE) & ~more_lines) | ((before == _SPACE) & last))
    if whole_end:
        ends = xp.max(xp.where(space | (kinds == _END), -1, index), axis=-1, keepdims=True, initial=-1)
        inside = inside & (index < ends)
    white = (opens | inside) & ~attached

    begins = xp.where(kinds == _LETTER, letter, xp.where(kinds == _NUMBER, number, rest))
    return xp.where(space, white, begins)
