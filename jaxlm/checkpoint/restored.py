"""Is the state that goes on the state that was saved? Asked of the arrays themselves, after all that was done to them.

A store returns what it read, bit by bit. What comes after it (another layout, a cast, a part that is made anew) can undo that
without a word: moments that begin at zero heal within some hundred steps, and nobody knows why the loss rose.
"""

from __future__ import annotations

from typing import Any

from jaxlm.checkpoint.leaves import host_leaves
from jaxlm.checkpoint.verifying import records_of
from jaxlm.contract import ContractError, Manifest

SHOWN = 5  # leaves that an error spells out; past them they are counted


def require_restored(state: Any, manifest: Manifest, *, artifact: object, below: str = "") -> None:
    """Raise ContractError, naming the leaves, where a leaf of `state` is not bit by bit what a checkpoint's manifest promises.

    below: the state is only that part of the one saved whose names begin with it (`params`).

    Copies the state to the host and digests it, about a second for each gigabyte; the arrays may lie on a mesh of one process.
    """
    prefix = f"{below}/" if below else ""
    expected = {name: record for name, record in records_of(manifest).items() if name.startswith(prefix)}
    found = {f"{prefix}{name}": leaf.record() for name, leaf in host_leaves(state, copy=False).items()}
    differing = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if differing:
        rest = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ContractError(
            "restored",
            artifact=artifact,
            expected=f"a state that is bit by bit the one saved, {len(expected)} leaves",
            found=f"another in {', '.join(differing[:SHOWN])}{rest}",
            remedy="The checkpoint is whole: something after it was read makes another state. Nothing was done with that.",
        )
