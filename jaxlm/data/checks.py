"""The batch contract, checked on the host before every step.

Written from the contract, not from the packing code: it looks at a batch as something that came from anywhere.
"""

from __future__ import annotations

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.data.batches import Batch


def check_batch(
    made: Batch,
    *,
    vocab_size: int,
    context_length: int,
    min_supervised: float = 0.0,
    borders: tuple[int, int] | None = None,
    label: str = "batch",
) -> None:
    """Raise ContractError, with both values and the place, where a batch breaks its contract.

    Ids and supervised labels lie in 0..vocab_size-1; supervised labels are the tokens shifted by one, within their document;
    positions count from 0 at each document; padding is at the end and unsupervised; the supervised share is at least
    `min_supervised`. borders: EOS and BOS, where a document ends and the next begins; a document begins there, then, and only
    there (or at the start of a row), and every label in the document of its input is supervised. label: names the batch in
    the message.
    """

    def require(ok_BT: np.ndarray, expected: str, values: np.ndarray, *, first: int = 0) -> None:
        """first: the position in the row that the first column stands for."""
        if not ok_BT.all():
            row, at = np.argwhere(~ok_BT)[0]
            where = f"row {row}, position {at + first} ({int((~ok_BT).sum())} places)"
            raise _broken(label, expected, f"{values[row, at]} at {where}")

    shape = made.tokens.shape
    for name, array in made._asdict().items():
        dtype = np.dtype(bool if name == "loss_mask" else np.int32)
        if array.dtype != dtype or array.shape != shape or len(shape) != 2 or 0 in shape:
            raise _broken(label, f"{name} as {dtype} {list(shape)}", f"{array.dtype} {list(array.shape)}")
    tokens, labels, mask, segments, positions = made
    require((tokens >= 0) & (tokens < vocab_size), f"ids in 0..{vocab_size - 1}", tokens)
    require(~mask | ((labels >= 0) & (labels < vocab_size)), f"labels in 0..{vocab_size - 1}", labels)
    require(segments >= 0, "segments >= 0", segments)
    require(segments[:, :1] <= 1, "segment 1 (or 0, padding) at the start of a row", segments[:, :1])
    require(~mask | (segments > 0), "no supervised padding (segment 0)", segments)

    same = segments[:, 1:] == segments[:, :-1]
    require(~mask[:, :-1] | (labels[:, :-1] == tokens[:, 1:]), "labels[t] = tokens[t + 1]", labels[:, :-1])
    require(~mask[:, :-1] | same, "a supervised label in the document of its input", segments[:, 1:])
    padding = segments == 0
    require(~padding[:, :-1] | padding[:, 1:], "padding at the end of a row", segments[:, 1:], first=1)
    counting = padding[:, 1:] | same | (segments[:, 1:] == segments[:, :-1] + 1)
    require(counting, "segments that count up by one", segments[:, 1:], first=1)

    if borders is not None:
        between = (tokens[:, :-1] == borders[0]) & (tokens[:, 1:] == borders[1]) & ~padding[:, 1:]
        begins = ~same & ~padding[:, 1:]
        require(between == begins, "a document that begins where EOS and BOS stand, and only there", tokens[:, 1:], first=1)
        # At the end of a row the label alone is there: it belongs to another document after an EOS. A token at position 0 is
        # the BOS, whatever its id.
        ends = (tokens[:, -1:] == borders[0]) & (positions[:, -1:] > 0)
        supervised = np.concatenate([same & ~padding[:, 1:], ~ends], axis=1) & ~padding
        require(mask == supervised, "every label supervised that belongs to the document of its input", mask)

    require(padding[:, :1] | (positions[:, :1] == 0), "position 0 at the start of a row", positions[:, :1])
    following = np.where(same, positions[:, :-1] + 1, 0)
    require(
        padding[:, 1:] | (positions[:, 1:] == following),
        "positions that restart at documents and count by one",
        positions[:, 1:],
        first=1,
    )
    require((positions >= 0) & (positions < context_length), f"positions below the trained {context_length}", positions)

    check_supervised(float(mask.mean()), min_supervised, label=label)


def check_supervised(share: float, least: float, *, label: str = "batch") -> None:
    """Raise ContractError where the share of supervised labels in a whole batch is less than `least`."""
    if share < least:
        raise _broken(label, f"at least {least:.1%} supervised labels", f"{share:.1%}")


def _broken(label: str, expected: str, found: str) -> ContractError:
    remedy = "The shards or the loader are wrong."
    return ContractError("batch", artifact=label, expected=expected, found=found, remedy=remedy)
