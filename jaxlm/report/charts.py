"""Which figures the page of a run shows, and how: every chart and heat map, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """Curves over the steps. curves: (figure, label). log: whether the axis begins logarithmic."""

    title: str
    unit: str
    curves: tuple[tuple[str, str], ...]
    log: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A figure by layer over the steps. reduce: which value of some steps is shown. log: of the colours."""

    name: str
    title: str
    unit: str = ""
    reduce: str = "high"
    log: bool = True


CHARTS = (
    Chart("Loss", "nats per label", (("loss", "training"), ("validation/loss", "validation"))),
    Chart("Bits per byte", "", (("bits_per_byte", "training"), ("validation/bits_per_byte", "validation"))),
    Chart("Gradient norm", "before clipping", (("grad_norm", "all parameters"),), log=True),
    Chart("Update / parameter", "ratio of norms", (("update_ratio", "all parameters"),), log=True),
    Chart("Learning rate", "", (("lr", "learning rate"),)),
    Chart("Loss scale", "", (("loss_scale", "loss scale"),), log=True),
    Chart("Throughput", "tokens/s", (("tokens_per_second", "tokens/s"),)),
    Chart("MFU", "share of the peak", (("mfu", "MFU"),)),
    Chart("Waiting for batches", "share of the time", (("waited", "waiting"),)),
    Chart("Spread of the loss", "standard deviation over labels", (("loss_spread", "spread"),)),
    Chart("Parameter norm", "", (("param_norm", "all parameters"),)),
    Chart("Mean squared log-sum-exp", "of the logits", (("z_loss", "z-loss"),), log=True),
    Chart(
        "Gradient norms outside of the blocks",
        "",
        (("grad_norms/embed", "embedding"), ("grad_norms/head", "head"), ("grad_norms/final_norm", "final norm")),
        log=True,
    ),
    Chart(
        "Update / parameter outside of the blocks",
        "",
        (("update_ratios/embed", "embedding"), ("update_ratios/head", "head"), ("update_ratios/final_norm", "final norm")),
        log=True,
    ),
    Chart("Supervised positions", "share", (("supervised", "supervised"),)),
    Chart("Similarity of the last activations", "mean cosine of two positions", (("similarity", "similarity"),)),
    Chart("Embedding rows without a gradient", "share", (("embed_rows_still", "still"),)),
)

ACTIVATIONS = (
    HeatMap("activations/residual_rms", "Residual stream, RMS", "input of the block"),
    HeatMap("activations/attn_rms", "Attention output, RMS"),
    HeatMap("activations/mlp_rms", "Feed-forward output, RMS"),
    HeatMap("activations/residual_max", "Residual stream, largest", "absolute"),
    HeatMap("activations/attn_max", "Attention output, largest", "absolute"),
    HeatMap("activations/mlp_max", "Feed-forward output, largest", "absolute"),
    HeatMap("activations/logit_max", "Attention logit, largest", log=False),
    HeatMap("activations/entropy", "Attention entropy", "nats; the lowest of some steps", reduce="low", log=False),
)
BACKWARD = (HeatMap("backward/residual_rms", "Gradient by the residual stream, RMS"),)
BAD = (
    HeatMap("nonfinite_forward/residual", "Residual stream, not finite", "values", log=False),
    HeatMap("nonfinite_forward/attn", "Attention output, not finite", "values", log=False),
    HeatMap("nonfinite_forward/mlp", "Feed-forward output, not finite", "values", log=False),
    HeatMap("nonfinite_backward", "Gradient by the residual stream, not finite", "values", log=False),
)
BY_PARAMETER = (
    ("grad_norms", "Gradient norms by parameter"),
    ("update_ratios", "Update / parameter by parameter"),
    ("param_norms", "Parameter norms"),
)


def groups(names: Iterable[str]) -> list[tuple[str, list[HeatMap]]]:
    """The heat maps of the figures by layer that there are, in groups with a title; what no group knows comes last."""
    there = dict.fromkeys(names)
    found = [("Activations", [m for m in ACTIVATIONS if m.name in there])]
    for group, title in BY_PARAMETER:
        inside = [name for name in there if name.startswith(f"{group}/")]
        maps = [HeatMap(name, name.removeprefix(f"{group}/").removeprefix("blocks/")) for name in inside]
        if group == "grad_norms":
            maps = [m for m in BACKWARD if m.name in there] + maps
        found.append((title, maps))
    found.append(("Values that are not finite", [m for m in BAD if m.name in there]))
    known = {m.name for _, maps in found for m in maps} | {"update_norms"}
    rest = [name for name in there if name not in known and not name.startswith("update_norms/")]
    found.append(("Other figures by layer", [HeatMap(name, name) for name in rest]))
    return [(title, maps) for title, maps in found if maps]


def rounded(value: Any) -> str:
    """A figure for a person, in four digits; other values as they are, a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
