"""The optimizer of a run, from its config: clipping, then AdamW."""

from __future__ import annotations

import functools

import optax

from jaxlm.config.schema import OptimConfig
from jaxlm.optim.adamw import adamw
from jaxlm.optim.clip import clip_by_global_norm
from jaxlm.optim.masks import decay_mask
from jaxlm.optim.schedules import schedule_of


def optimizer_of(cfg: OptimConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Gradients to updates, over `steps` updates. `clip_norm` 0 leaves clipping out.

    `update` takes `norm`, the gradients' global norm where it is known (`clip_by_global_norm`), and `applied` (`adamw`).
    """
    adam = adamw(
        schedule_of(cfg, steps),
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=functools.partial(decay_mask, no_decay=cfg.no_decay),
    )
    return optax.chain(clip_by_global_norm(cfg.clip_norm), adam) if cfg.clip_norm else optax.chain(adam)


def updates_made(opt_state: optax.OptState) -> int:
    """How many updates an optimizer state of `optimizer_of` has made."""
    return int(opt_state[-1].count)
