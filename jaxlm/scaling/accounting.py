"""Parameters by kind, and the FLOPs of a token.

One multiplication and one addition are two FLOPs; only matrix products count, as in Kaplan et al. 2020, section 2.1. Norms,
rotations, softmax and the optimizer are of the order of the activations and parameters, not of their product.

Axes: D model, N query head, K key/value head, H head width, F hidden, V vocabulary (padded), L layer, T position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxlm.config.schema import ModelConfig
from jaxlm.model import param_specs
from jaxlm.model.spec import named_leaves

KINDS = ("embedding", "attention", "feed-forward", "norms", "head")


def kind_of(path: str) -> str:
    """The kind of a parameter, one of `KINDS`, from its name. Raises ValueError for a name of no parameter."""
    leaf = path.rpartition("/")[2]
    if leaf.endswith("_norm"):
        return "norms"
    if leaf in ("embed", "head"):
        return {"embed": "embedding"}.get(leaf, leaf)
    if leaf in ("wq", "wk", "wv", "wo") or leaf.endswith("_bias"):
        return "attention"
    if leaf in ("w_gate", "w_up", "w_down"):
        return "feed-forward"
    raise ValueError(f"{path}: expected the name of a parameter of the model, found another")


def parameters(cfg: ModelConfig) -> dict[str, int]:
    """How many parameters there are of each of `KINDS`. A tied head counts once, as the embedding."""
    counts = dict.fromkeys(KINDS, 0)
    for path, spec in named_leaves(param_specs(cfg)).items():
        counts[kind_of(path)] += math.prod(spec.shape)
    return counts


def non_embedding(cfg: ModelConfig) -> int:
    """Parameters without the embedding and the head: the N of Kaplan et al. 2020."""
    counts = parameters(cfg)
    return sum(counts.values()) - counts["embedding"] - counts["head"]


def mean_keys(length: int, window: int = 0) -> float:
    """How many keys a position sees, in the mean over the positions of one document of `length` tokens.

    Causal order: position t sees t + 1, which is (T + 1) / 2 in the mean; a window of w: at most w.
    """
    reach = min(window or length, length)
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length


@dataclass(frozen=True)
class Flops:
    """FLOPs of one token, by part. The forward pass; what follows from it are properties.

    projections: of attention. scores: its context-dependent part, queries by keys and weights by values, over the keys that
    a position sees. feed_forward, down: the feed-forward, and of that its last product. head: the logits.
    scores_full: the same as `scores` over all T keys, which is what XLA computes where it masks instead of skipping.
    """

    projections: float
    scores: float
    scores_full: float
    feed_forward: float
    down: float
    head: float
    remat: str

    @property
    def forward(self) -> float:
        """2 for every weight that is multiplied, and the scores."""
        return self.projections + self.scores + self.feed_forward + self.head

    @property
    def backward(self) -> float:
        """Twice the forward pass: each product has a gradient by either operand."""
        return 2 * self.forward

    @property
    def model(self) -> float:
        """Forward and backward: what MFU counts (Chowdhery et al. 2022, appendix B), here with causal halving."""
        return self.forward + self.backward

    @property
    def attention_recompute(self) -> float:
        """Attention keeps no weights: its backward pass multiplies queries by keys once more, half of the scores' part."""
        return self.scores / 2

    @property
    def remat_recompute(self) -> float:
        """What the policy computes again. dots: the scores. block, offload: the block, but for its last product, whose
        result no gradient needs."""
        if self.remat == "none":
            return 0.0
        if self.remat == "dots":
            return self.scores
        return self.projections + self.scores + self.feed_forward - self.down

    @property
    def hardware(self) -> float:
        """All that is computed: the model's FLOPs and both kinds of recomputation."""
        return self.model + self.attention_recompute + self.remat_recompute


def flops_per_token(cfg: ModelConfig, remat: str = "none", *, length: int = 0) -> Flops:
    """FLOPs of one token in a document of `length` tokens (0: the whole context), forward, by part."""
    L, D, N, K, H, F = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.kv_heads, cfg.head_width, cfg.ff_width
    length = length or cfg.context_length
    matrices = 3 if cfg.ffn == "swiglu" else 2
    return Flops(
        projections=2.0 * L * D * H * (2 * N + 2 * K),
        scores=4.0 * L * N * H * mean_keys(length, cfg.window),
        scores_full=4.0 * L * N * H * length,
        feed_forward=2.0 * L * matrices * D * F,
        down=2.0 * L * D * F,
        head=2.0 * D * cfg.padded_vocab,
        remat=remat,
    )
