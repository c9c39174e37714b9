"""The characters in which GPT-2's files write bytes: printable ones for themselves, the others from U+0100 on.

Source: Radford et al. 2019, the released code. So every token is a word without spaces, whatever its bytes are.
"""

from __future__ import annotations

from jaxlm.tokenizer.definition import OTHERS, PRINTABLE

CHARACTERS: tuple[str, ...] = tuple(
    chr(byte) if byte in PRINTABLE else chr(0x100 + OTHERS.index(byte)) for byte in range(256)
)  # by byte
BYTES: dict[str, int] = {character: byte for byte, character in enumerate(CHARACTERS)}


def written(token: bytes) -> str:
    """A token in these characters."""
    return "".join([CHARACTERS[byte] for byte in token])


def read(text: str) -> bytes | None:
    """The token that these characters stand for; None where one of them stands for no byte, or there is none."""
    try:
        return bytes([BYTES[character] for character in text]) or None
    except KeyError:
        return None
