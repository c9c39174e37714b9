"""What a config says of a model that has learnt nothing: the bounds of its loss, and how its weights are drawn.

Derived from the config alone, by none of the code that makes the weights or the logits, so that both can be held to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxlm.config.schema import ModelConfig

SLACK = 0.5  # nats: what a batch, finitely many ids and the draw of the weights do
MOST_SPREAD = 6.0  # variance of the logits; past this the loss is near ln V no more
BRANCHES = 0.4  # RMS at least of what all blocks add where their input is normed: sqrt(L E[silu(z)**2] / (2 L)), z normal


def first_loss_bounds(cfg: ModelConfig, *, repeated: float = 1.0) -> tuple[float, float]:
    """The least and the largest loss, in nats per label, of an untrained model. repeated: share of labels that are their own
    token, 1 where it is not known.

    The mean log-sum-exp of logits of mean 0 and variance s is between ln V and ln V + s / 2 (Jensen, both ways): logits are
    sums of D products of an activation with weights of standard deviation `init_std`, so s = D init_std**2 where
    activations are normed, and less where they are not. With tied embeddings the last activation holds some of the token's
    own embedding, whose logit is no such sum: the model predicts a repetition, as strongly as `own_logit` says. Caps of
    logits only make them smaller.
    """
    uniform = math.log(cfg.vocab_size)
    spread, own = min(cfg.init_std**2 * cfg.d_model, MOST_SPREAD), own_logit(cfg)
    return uniform - own * repeated - SLACK, float(np.logaddexp(uniform + spread / 2, own)) + SLACK


class Drawn(NamedTuple):
    """Mean and standard deviation of a parameter's elements; std 0: all of them are the mean."""

    mean: float
    std: float


def drawn(cfg: ModelConfig) -> dict[str, Drawn]:
    """How every parameter of the config starts, by path.

    Matrices start normal with standard deviation inputs**-0.5; those that write to the residual stream are smaller by
    (2 L)**0.5 (Radford et al. 2019, section 2.3); the embedding and an untied head have `init_std`. Gains are 1, biases 0.
    """
    reads, writes = cfg.d_model**-0.5, (2 * cfg.n_layers) ** -0.5
    found = {"embed": Drawn(0.0, cfg.init_std)}
    found |= {f"blocks/{name}": Drawn(0.0, reads) for name in ("wq", "wk", "wv", "w_up")}
    found["blocks/wo"] = Drawn(0.0, writes * (cfg.n_heads * cfg.head_width) ** -0.5)
    found["blocks/w_down"] = Drawn(0.0, writes * cfg.ff_width**-0.5)
    if cfg.ffn == "swiglu":
        found["blocks/w_gate"] = Drawn(0.0, reads)
    if cfg.attention_bias:
        found |= {f"blocks/{part}_bias": Drawn(0.0, 0.0) for part in "qkvo"}
    if cfg.qk_norm:
        found |= {f"blocks/{part}_norm": Drawn(1.0, 0.0) for part in "qk"}
    if cfg.norm != "none":
        found |= {f"blocks/{part}_norm": Drawn(1.0, 0.0) for part in ("attn", "mlp")}
    if cfg.norm == "pre":
        found["final_norm"] = Drawn(1.0, 0.0)
    if not cfg.tie_embeddings:
        found["head"] = Drawn(0.0, cfg.init_std)
    return found


def own_logit(cfg: ModelConfig) -> float:
    """The largest logit of the token itself that tied embeddings give an untrained model; 0 where they are not tied.

    The product of an embedding with itself is D init_std**2. Where activations are normed it is divided by their RMS before:
    that of the embedding, and with norm "pre" of what the blocks have added too. Norm "post" makes the embedding large before
    the blocks add to it.
    """
    if not (cfg.tie_embeddings and cfg.residual):
        return 0.0
    beside = {"post": cfg.init_std, "pre": math.hypot(cfg.init_std, BRANCHES), "none": 1.0}[cfg.norm]
    return cfg.init_std**2 * cfg.d_model / beside
