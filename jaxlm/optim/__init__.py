"""AdamW, schedules, clipping and decay masks, shaped like optax's."""

from jaxlm.config.schema import OptimConfig
from jaxlm.optim.adamw import AdamWState, adamw
from jaxlm.optim.build import optimizer_of, updates_made
from jaxlm.optim.clip import clip_by_global_norm, global_norm
from jaxlm.optim.masks import decay_mask
from jaxlm.optim.schedules import constant_schedule, cosine_schedule, linear_schedule, schedule_of, wsd_schedule

__all__ = [
    "AdamWState",
    "OptimConfig",
    "adamw",
    "clip_by_global_norm",
    "constant_schedule",
    "cosine_schedule",
    "decay_mask",
    "global_norm",
    "linear_schedule",
    "optimizer_of",
    "schedule_of",
    "updates_made",
    "wsd_schedule",
]
