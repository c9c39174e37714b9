"""A document's ids against its text, before they are written: what is trained on is what was read."""

from __future__ import annotations

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.tokenizer import Tokenizer

AROUND = 24  # bytes of the text that a message shows, from the first that differs


def require_document(tokenizer: Tokenizer, ids: np.ndarray, text: bytes, *, origin: str) -> None:
    """Raise ContractError where `ids` are not BOS, the ids of `text`, EOS. text: UTF-8.

    They must decode to the text, byte by byte, and hold no special id between BOS and EOS: special text in a document is text
    like any other. Costs a decoding, about one part in
    twenty of the time that a document takes to be read, encoded and written.
    """
    inside = ids[1:-1]
    if len(ids) < 2 or (ids[0], ids[-1]) != (tokenizer.bos_id, tokenizer.eos_id):
        found = f"{ids[:2].tolist()} ... {ids[-2:].tolist()}"
        raise _broken(origin, f"a document that begins with id {tokenizer.bos_id} and ends with id {tokenizer.eos_id}", found)
    try:
        decoded = tokenizer.decode_bytes(inside)
    except ValueError as error:
        raise _broken(origin, "ids of the tokenizer", str(error)) from None
    if special := np.flatnonzero(tokenizer.byte_lengths[inside] == 0).tolist():
        names = {number: name for name, number in tokenizer.special_ids.items()}
        found = f"id {inside[special[0]]}, {names[int(inside[special[0]])]!r}, at place {special[0] + 1} of {len(ids)}"
        raise _broken(origin, "no special token between BOS and EOS", found)
    if decoded != text:
        at = _first_difference(decoded, text)
        expected = f"ids that decode to the text, {len(text)} bytes, at byte {at} {text[at : at + AROUND]!r}"
        raise _broken(origin, expected, f"{len(decoded)} bytes, there {decoded[at : at + AROUND]!r}")


def _first_difference(a: bytes, b: bytes) -> int:
    same = min(len(a), len(b))
    different = np.frombuffer(a, np.uint8, same) != np.frombuffer(b, np.uint8, same)
    return int(np.argmax(different)) if different.any() else same


def _broken(origin: str, expected: str, found: str) -> ContractError:
    remedy = "The tokenizer does not give this text back; use the version of jaxlm that made it, or train it again."
    return ContractError("data", artifact=origin, expected=expected, found=found, remedy=remedy)
