"""An epoch against the shards' manifest: it covers every token of a split, whatever counts the rows."""

from __future__ import annotations

from jaxlm.contract import ContractError
from jaxlm.data.shards import ShardSet


def require_whole_epoch(data: ShardSet, context_length: int) -> None:
    """Raise ContractError where the rows of a split, as its stream counts them, are not those that its tokens make.

    A row of `context_length` positions predicts as many tokens, so that all tokens but the first are labels in one row or
    another; and the last row has at least one of them. Tokens are those of the shards that the manifest lists, added up.
    """
    for split, stream in (("train", data.train), ("val", data.val)):
        labels = sum(data.manifest.facts["splits"][split]["shards"].values()) - 1
        rows = stream.rows(context_length)
        if (rows - 1) * context_length < labels <= rows * context_length:
            continue
        raise ContractError(
            "data",
            artifact=data.path,
            expected=f"an epoch of {split} that covers the {labels + 1:,} tokens of its shards: "
            f"{-(-labels // context_length):,} rows of {context_length}",
            found=f"{rows:,} rows, for {rows * context_length:,} tokens",
            remedy="Whatever lies past the last row is never trained on: the stream does not hold the shards of the manifest.",
        )
