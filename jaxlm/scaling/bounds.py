"""How far a batch and a model can be spread before devices wait for each other: communication time against compute time.

Each bound compares what one layer's matrix products take with what its collective takes, both at their peaks, as if the two
could overlap fully. With C FLOP/s, W bytes per second sent in one direction over one mesh axis, b bytes of a number in the
compute dtype, t tokens on a device (of a micro-batch), P weights of a layer, n devices along the axis (large: (n-1)/n = 1):

- dp: gradients, 2 b P / W, against the backward pass, 4 P t / C: t >= b C / (2 W). Where fsdp has scattered them first, each
  replica holds the part of one shard, and the bound is smaller by as many shards.
- fsdp: a gather, b P / W, against the forward pass, 2 P t / C; or a gather and a scatter against the backward pass: the same t.
- tp: two sums of t D numbers in a forward pass, 4 b t D (n-1) / (n W), against 2 P t / (n C): n - 1 <= P W / (2 b D C). The
  tokens fall out: a larger batch does not help.
- context: keys and values of s positions, 2 b s K H / W, against the attention to them, 4 s^2 N H / C (half of it where causal
  order masks the rest): s >= b K C / (N W) positions of a row on a device.

Source: Austin et al. 2025 (How to Scale Your Model), part 5; here for the links that the table of hardware has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxlm.config.schema import RunConfig
from jaxlm.parallel import rules_of
from jaxlm.scaling.accounting import parameters
from jaxlm.scaling.collectives import WIDTH, bandwidth_of
from jaxlm.scaling.hardware import Hardware


@dataclass(frozen=True)
class Bound:
    """One way to spread a step. unit: what `least` and `here` count, tokens of a micro-batch on a device or positions of a row.

    least: the smallest number at which compute hides the communication; None where it does not depend on that (tp).
    largest: the largest degree that is useful for this batch and model. degree: that of the config. fits: whether it is within.
    """

    name: str
    axes: tuple[str, ...]
    bandwidth: float
    unit: str
    least: float | None
    here: float
    largest: int
    degree: int

    @property
    def fits(self) -> bool:
        """Whether compute hides the communication at the config's degree; always where nothing is spread."""
        return self.degree <= max(1, self.largest)


def bounds(cfg: RunConfig, hardware: Hardware) -> list[Bound]:
    """The bounds of dp, fsdp, tp and context for a model and a batch, on the links that the config's mesh axes lie on."""
    mesh, model, rules = cfg.mesh, cfg.model, rules_of(cfg.mesh, cfg.model.kv_heads)
    flops, width = hardware.flops(cfg.train.precision), WIDTH[cfg.train.precision]
    rows = cfg.train.batch_size // cfg.train.grad_accum
    counts = parameters(model)
    layer = (counts["attention"] + counts["feed-forward"]) / model.n_layers
    spread = mesh.data * mesh.fsdp * mesh.context if rules.a_B else mesh.context
    here = rows * model.context_length / spread
    found = []
    for name, axes in (("dp", ("data",)), ("fsdp", ("fsdp",))):
        bandwidth = bandwidth_of(axes, mesh, hardware)
        least = width * flops / (2 * bandwidth) / (mesh.fsdp if name == "dp" else 1)
        degree = getattr(mesh, axes[0])
        # Tokens for the whole axis, all else as it is; no more shards than rows.
        largest = min(int(here * degree / least), rows)
        found.append(Bound(name, axes, bandwidth, "tokens", least, here, largest, degree))
    bandwidth = bandwidth_of(("tensor",), mesh, hardware)
    largest = 1 + int(layer * bandwidth / (2 * width * model.d_model * flops))
    found.append(Bound("tp", ("tensor",), bandwidth, "tokens", None, here, min(largest, model.n_heads), mesh.tensor))
    bandwidth = bandwidth_of(("context",), mesh, hardware)
    least = width * model.kv_heads * flops / (model.n_heads * bandwidth)
    largest = min(int(model.context_length / least), model.context_length)
    positions = model.context_length / mesh.context
    found.append(Bound("context", ("context",), bandwidth, "positions", math.ceil(least), positions, largest, mesh.context))
    return found


def ridge(hardware: Hardware, precision: str) -> float:
    """FLOPs a byte of memory at which a device computes as fast as it reads: peak FLOP/s over bandwidth."""
    return hardware.flops(precision) / hardware.bandwidth
