"""What a config says that every step must show: rates, sizes, bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.model import param_specs
from jaxlm.model.spec import named_leaves
from jaxlm.model.untrained import first_loss_bounds
from jaxlm.optim.reference import learning_rates


class Expected(NamedTuple):
    """Facts of a run; those that are not known are None, and what needs them is not judged.

    lr: float64 [steps], the rate of the n-th update at n - 1. sizes: elements of each parameter (of one layer, for blocks).
    betas: of Adam. clip_norm: 0 for none. first_loss: least and largest, nats per label, of the untrained model.
    uniform_loss: ln V. min_supervised: the least share. scaled: whether the loss is scaled (float16). balanced: whether a
    block adds attention and feed-forward to its input and nothing else (pre-norm or none, with the residual and without
    dropout). tied: whether the embedding makes the logits too, so that every row of it has a gradient.
    """

    lr: np.ndarray | None = None
    sizes: dict[str, int] | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    first_loss: tuple[float, float] | None = None
    uniform_loss: float | None = None
    min_supervised: float = 0.0
    scaled: bool | None = None
    balanced: bool = False
    tied: bool = False


def expected_of(cfg: RunConfig) -> Expected:
    """What `cfg`, with a known vocabulary, makes of every step."""
    model, optim = cfg.model, cfg.optim
    sizes = {
        name: math.prod(spec.shape[1:] if name.startswith("blocks/") else spec.shape)
        for name, spec in named_leaves(param_specs(model)).items()
    }
    return Expected(
        lr=learning_rates(optim, cfg.train.steps, np.arange(cfg.train.steps)),
        sizes=sizes,
        betas=(optim.b1, optim.b2),
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        first_loss=first_loss_bounds(model),
        uniform_loss=math.log(model.vocab_size),
        min_supervised=cfg.data.min_supervised,
        scaled=cfg.train.precision == "float16" and cfg.train.loss_scaling,
        balanced=model.residual and model.norm != "post" and model.dropout == 0,
        tied=model.tie_embeddings,
    )
