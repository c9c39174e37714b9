"""Accounting: parameters, FLOPs, memory, communication and time of a run, from its config alone."""

from jaxlm.scaling.accounting import Flops, flops_per_token, non_embedding, parameters
from jaxlm.scaling.bounds import Bound, bounds
from jaxlm.scaling.collectives import Collective, collectives
from jaxlm.scaling.estimate import Estimate, estimate
from jaxlm.scaling.explanation import explanation
from jaxlm.scaling.hardware import HARDWARE, Hardware, hardware_of
from jaxlm.scaling.memory import Memory, memory
from jaxlm.scaling.plan import on_devices, with_vocabulary

__all__ = [
    "HARDWARE",
    "Bound",
    "Collective",
    "Estimate",
    "Flops",
    "Hardware",
    "Memory",
    "bounds",
    "collectives",
    "estimate",
    "explanation",
    "flops_per_token",
    "hardware_of",
    "memory",
    "non_embedding",
    "on_devices",
    "parameters",
    "with_vocabulary",
]
