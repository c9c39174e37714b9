"""Are the leaves on the disk those of the step? Their norms against the ones that the step itself reported.

A save that shares memory with the state digests whatever the next step has made of it by then, and all digests agree; so do
those of parameters that are a step old. The step's own report is the one figure of the state that was taken when it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.contract import ContractError

# Compilers sum in trees, and what 9 million equal squares are off by, whose roundings all go one way, is below 1e-6; an update
# at a usual rate moves a norm by some 1e-4.
TOLERANCE = 2e-5
NOTHING = 1e-13  # norms up to which squares may have left the range of float32


def require_norms(leaves: Mapping[str, np.ndarray], norms: Mapping[str, Any], *, artifact: object) -> None:
    """Raise ContractError, naming the leaf, where the norm of a leaf is not the one expected, to the rounding of float32.

    norms: by leaf, a number, or one for each entry of the leaf's first axis; any that is not finite is passed over. Leaves that
    are not named there are not looked at. In float64, about a second for each gigabyte.
    """
    for name, expected in norms.items():
        wanted = np.asarray(expected, np.float64)
        data = leaves[name].reshape(*wanted.shape, -1)
        numbers = data.astype(np.float32) if data.dtype.itemsize < 4 else data
        found = np.sqrt(np.einsum("...i,...i->...", numbers, numbers, dtype=np.float64))
        wrong = np.isfinite(wanted) & (np.abs(found - wanted) > TOLERANCE * wanted + NOTHING)
        if wrong.any():
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            place = f"{name}[{at[0]}]" if at else name
            raise ContractError(
                "checkpoint",
                artifact=f"{artifact} (leaf {place})",
                expected=f"a norm of {wanted[at]:.9g}, as the step reported it",
                found=f"{found[at]:.9g}",
                remedy="What was written is not the state of its step: nothing of this save is kept. Resume from the last "
                "checkpoint; where it comes back, save with --checkpoint.asynchronous False.",
            )
