"""What a step and a whole run take at a stated share of the peak.

MFU, model FLOPs utilization (Chowdhery et al. 2022, appendix B): FLOPs of the forward and the backward pass, without what is
computed again, over what the devices could compute in that time. 0.4 is a usual value for well-tuned dense models.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError
from jaxlm.scaling.accounting import flops_per_token, parameters
from jaxlm.scaling.hardware import Hardware

CHINCHILLA = 20.0  # tokens per parameter at the compute optimum, about: Hoffmann et al. 2022, table 3


@dataclass(frozen=True)
class Estimate:
    """step_seconds, run_seconds; tokens_per_second over all devices. step_flops, run_flops: the model's, over all devices.

    tokens: of the whole run. tokens_per_parameter: against all parameters, the embedding included.
    """

    mfu: float
    step_seconds: float
    tokens_per_second: float
    step_flops: float
    run_seconds: float
    run_flops: float
    tokens: int
    tokens_per_parameter: float


def estimate(cfg: RunConfig, hardware: Hardware, *, mfu: float = 0.4) -> Estimate:
    """Time and FLOPs of `cfg` on its mesh of such devices. Raises InputError for an MFU that is no share of 1."""
    if not 0.0 < mfu <= 1.0:
        raise InputError(f"--mfu: expected a share above 0, at most 1, found {mfu:g}")
    step_flops = flops_per_token(cfg.model, cfg.train.remat).model * cfg.tokens_per_step
    seconds = step_flops / (cfg.mesh.size * hardware.flops(cfg.train.precision) * mfu)
    tokens = cfg.tokens_per_step * cfg.train.steps
    return Estimate(
        mfu=mfu,
        step_seconds=seconds,
        tokens_per_second=cfg.tokens_per_step / seconds,
        step_flops=step_flops,
        run_seconds=seconds * cfg.train.steps,
        run_flops=step_flops * cfg.train.steps,
        tokens=tokens,
        tokens_per_parameter=tokens / sum(parameters(cfg.model).values()),
    )
