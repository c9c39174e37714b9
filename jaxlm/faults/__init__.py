"""Planted faults: the catalogue, and the bench that measures which are caught."""

from jaxlm.faults.catalogue import CATALOGUE, named
from jaxlm.faults.fault import LAYERS, STEPS, Disturbed, Fault, Patch, Program, Tampered
from jaxlm.faults.ground import Ground, small
from jaxlm.faults.trial import Seen, Trial, trial

__all__ = [
    "CATALOGUE",
    "LAYERS",
    "STEPS",
    "Disturbed",
    "Fault",
    "Ground",
    "Patch",
    "Program",
    "Seen",
    "Tampered",
    "Trial",
    "named",
    "small",
    "trial",
]
