"""The axis alphabet: one letter, one meaning, in every shape suffix, einsum string and `ParamSpec.dims` of the project.

An array is named with its axes as a suffix (`x_BTD`, `q_BTNH`); einsum strings use the same letters, and so do the
dimension strings of parameters (`"LDNH"`). Shapes are checked at public boundaries only, where a wrong array enters.
"""

from __future__ import annotations

from typing import Protocol

ALPHABET: dict[str, str] = {
    "A": "micro-batch of an accumulated step",
    "B": "batch (sequence)",
    "T": "position of a query, or of a token",
    "S": "position of a key",
    "D": "model width",
    "N": "query head",
    "K": "key/value head",
    "G": "query heads that share one key/value head (N = K * G)",
    "H": "head width",
    "F": "feed-forward hidden width",
    "V": "vocabulary",
    "L": "layer",
}


class HasShape(Protocol):
    """Anything with a shape: a NumPy or JAX array, a tracer, a ShapeDtypeStruct."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""


def check_shape(name: str, array: HasShape, dims: str, **sizes: int) -> dict[str, int]:
    """Check `array` against `dims` (letters of `ALPHABET`) and return the size of every letter.

    A letter that occurs twice, or whose size is given in `sizes`, must have one size throughout.
    Raises ValueError with the expected and the found shape.
    """
    shape = tuple(array.shape)
    bound = dict(sizes)
    ok = len(shape) == len(dims)
    if ok:
        for letter, size in zip(dims, shape, strict=True):
            if letter not in ALPHABET:
                raise ValueError(f"axis {letter!r} of {name} is not in the alphabet {''.join(ALPHABET)}")
            ok = ok and bound.setdefault(letter, size) == size
    if not ok:
        expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in dims)
        raise ValueError(f"{name}: expected shape [{expected}], found {list(shape)}")
    return bound
