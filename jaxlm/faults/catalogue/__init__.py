"""The catalogue of faults, by layer of the stack. Nothing that detects may read it."""

from __future__ import annotations

from jaxlm.contract import InputError
from jaxlm.faults.catalogue import (
    attention,
    backward,
    batch,
    checkpoint,
    data,
    distribution,
    evaluation,
    inference,
    model,
    numerics,
    optimizer,
    tokenizer,
)
from jaxlm.faults.fault import Fault

_LAYERS = (
    tokenizer, data, batch, attention, model, backward, numerics, optimizer, distribution, checkpoint, inference, evaluation
)  # fmt: skip

CATALOGUE: dict[str, Fault] = {fault.name: fault for layer in _LAYERS for fault in layer.FAULTS}
"""All faults by name, in the order of the stack."""


def named(names: list[str]) -> list[Fault]:
    """The faults of these names, or of the layers of these names; all of them for none. Raises InputError for another name."""
    import difflib

    found: dict[str, Fault] = {}
    for name in names or list(CATALOGUE):
        matching = [fault for fault in CATALOGUE.values() if name in (fault.name, fault.layer)]
        if not matching:
            near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.4)
            hint = f"the nearest is {near[0]}" if near else "`jaxlm faults --list` shows them"
            raise InputError(f"{name}: expected the name of a fault or of a layer, found none; {hint}")
        found |= {fault.name: fault for fault in matching}
    return list(found.values())
