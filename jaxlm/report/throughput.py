"""What the devices of a run can compute, and what a step of its model costs: the two sides of MFU.

MFU, model FLOPs utilization: Chowdhery et al. 2022, appendix B.
"""

from __future__ import annotations

import re

from jaxlm.config.schema import RunConfig
from jaxlm.scaling import HARDWARE, Hardware, flops_per_token

# What jax calls a device (`device_kind`), in the order in which the patterns are tried.
KINDS = (
    (r"\bA100\b", "a100"),
    (r"\bH100\b", "h100"),
    (r"\bH200\b", "h200"),
    (r"\bB200\b", "b200"),
    (r"TPU v4", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5", "v5p"),
    (r"TPU v6", "v6e"),
    (r"^cpu$", "cpu"),
)


def hardware_from(device_kind: str) -> Hardware | None:
    """The row of `jaxlm.scaling.HARDWARE` for a device as jax names it; None where there is none, and so no MFU."""
    name = next((name for pattern, name in KINDS if re.search(pattern, device_kind, re.IGNORECASE)), None)
    return HARDWARE[name] if name else None


def step_flops(config: RunConfig) -> float:
    """FLOPs of the model in one step, forward and backward, over all devices."""
    return flops_per_token(config.model, config.train.remat).model * config.tokens_per_step


def peak_flops(config: RunConfig, hardware: Hardware) -> float:
    """FLOP/s that all devices of the run's mesh could reach together, at its precision."""
    return config.mesh.size * hardware.flops(config.train.precision)
