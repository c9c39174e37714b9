"""What travels between devices in one step, and how long that takes: read off the rules, not off a compiled program.

Bytes are those that one device sends, for algorithms that send the least: of a whole result of S bytes, over n devices,
(n-1)/n S for an all-gather or a reduce-scatter, twice that for an all-reduce, S for every pass of a ring (Thakur et al. 2005).
Gathers and gradients of matrices travel in the compute dtype, gains of norms in float32. Statistics, norms of gradients and
the log-sum-exps of the loss are left out: each is a few bytes a position or a parameter leaf.

Axes: B batch, T position, D model, N query head, K key/value head, H head width, L layer, V vocabulary (padded).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxlm.config.schema import MeshConfig, RunConfig
from jaxlm.model import param_specs
from jaxlm.model.spec import ParamSpec, named_leaves
from jaxlm.parallel import MESH_AXES, AxisRules, rules_of
from jaxlm.scaling.hardware import Hardware

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


@dataclass(frozen=True)
class Collective:
    """One kind of transfer. payload: bytes of one device's result (of what one pass sends, for a ring). count: in one step."""

    what: str
    operation: str
    axes: tuple[str, ...]
    devices: int
    payload: float
    count: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends in one step."""
        n = self.devices
        factor = {"all-gather": (n - 1) / n, "reduce-scatter": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "permute": 1.0}
        return factor[self.operation] * self.payload * self.count


def bandwidth_of(axes: tuple[str, ...], mesh: MeshConfig, hardware: Hardware) -> float:
    """Bytes per second that a device sends in a collective over `axes`.

    Devices are numbered with the last mesh axis fastest, and a domain of fast links holds consecutive numbers.
    """
    inside = 1
    for axis in axes:
        stride = math.prod(getattr(mesh, later) for later in MESH_AXES[MESH_AXES.index(axis) + 1 :])
        inside *= min(getattr(mesh, axis), max(1, hardware.domain // stride))
    return hardware.axis_bandwidth(inside, leaves=inside < _size(axes, mesh))


def collectives(cfg: RunConfig) -> list[Collective]:
    """Every collective of one training step of `cfg`; its vocabulary has to be known. Axes of size 1 send nothing."""
    mesh, model = cfg.mesh, cfg.model
    rules, specs = rules_of(mesh, model.kv_heads), named_leaves(param_specs(model))
    found = [*_of_weights(cfg, rules, specs), *_of_tensor(cfg, rules), *_of_context(cfg, rules)]
    return [one for one in found if one.devices > 1 and one.payload > 0 and one.count > 0]


def _size(axes: tuple[str, ...], mesh: MeshConfig) -> int:
    return math.prod(getattr(mesh, axis) for axis in axes)


def _of_weights(cfg: RunConfig, rules: AxisRules, specs: dict[str, ParamSpec]) -> list[Collective]:
    """Gathers of what fsdp cuts, and the sums of gradients."""
    mesh, micro, width = cfg.mesh, cfg.train.grad_accum, WIDTH[cfg.train.precision]
    positions = rules.a_B + rules.a_T
    gathered, scattered, reduced = [0.0, 0.0], 0.0, 0.0
    head = specs.get("head", specs["embed"])
    shards = tuple(axis for axis in rules.w_D if axis in rules.a_B)
    cut = _size(shards, mesh)
    for path, spec in specs.items():
        matrix = len(spec.dims.removeprefix("L")) > 1
        # What a device uses of it: whole, but for the shards of heads, hidden width and vocabulary.
        used = _used(spec, rules, mesh) * (width if matrix else 4)
        if "D" in spec.dims and cut > 1:
            gathered[path.startswith("blocks/")] += used
            scattered += used
            reduced += used / cut
        else:
            reduced += used
    gradient = _used(head, rules, mesh) * 4.0  # the head adds up its gradient over blocks, in float32
    if "head" in specs:
        gradient -= _used(head, rules, mesh) * width  # counted with the other parameters
    # A tied head is gathered once, for both of its uses; its gradient comes apart from that of the embedding.
    scattered += gradient if cut > 1 else 0.0
    reduced += gradient / cut
    others = tuple(axis for axis in positions if axis not in shards)
    n, m = cut, _size(others, mesh)
    return [
        Collective("weights of the layers, forward and backward", "all-gather", shards, n, gathered[True], 2 * micro),
        Collective("embedding and head", "all-gather", shards, n, gathered[False], micro),
        Collective("gradients, to the shards of weights", "reduce-scatter", shards, n, scattered, micro),
        Collective("gradients, over replicas", "all-reduce", others, m, reduced, micro),
    ]


def _used(spec: ParamSpec, rules: AxisRules, mesh: MeshConfig) -> float:
    """Numbers of a parameter, all layers, as one device uses it."""
    axes = [axis for entry in rules.used(spec.dims) if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(spec.shape) / _size(tuple(axes), mesh)


def positions_of(cfg: RunConfig, rules: AxisRules) -> float:
    """Positions of a micro-batch on one device."""
    total = cfg.train.batch_size // cfg.train.grad_accum * cfg.model.context_length
    return total / _size(rules.a_B + rules.a_T, cfg.mesh)


def _of_tensor(cfg: RunConfig, rules: AxisRules) -> list[Collective]:
    """Sums over the shards of heads, hidden width and vocabulary."""
    model, mesh, micro, width = cfg.model, cfg.mesh, cfg.train.grad_accum, WIDTH[cfg.train.precision]
    axes = rules.w_N
    n, L = _size(axes, mesh), model.n_layers
    positions = positions_of(cfg, rules)
    stream = positions * model.d_model
    again = L if cfg.train.remat in ("block", "offload") else 0  # the sum behind attention is needed once more
    whole_heads = 2 * positions * model.kv_heads * model.head_width * width if rules.w_N and not rules.w_K else 0.0
    return [
        Collective("outputs of attention and feed-forward", "all-reduce", axes, n, stream * width, (2 * L + again) * micro),
        Collective("gradients of their inputs", "all-reduce", axes, n, stream * width, 2 * L * micro),
        Collective("gradients of keys and values on every shard", "all-reduce", axes, n, whole_heads, L * micro),
        Collective("rows of the embedding", "all-reduce", rules.w_V, _size(rules.w_V, mesh), stream * width, micro),
        Collective("gradient of the last activations", "all-reduce", rules.w_V, _size(rules.w_V, mesh), stream * 4.0, micro),
    ]


def _of_context(cfg: RunConfig, rules: AxisRules) -> list[Collective]:
    """Keys and values round the ring: forward (again, where attention is computed again) and backward, gradients with them."""
    model, mesh, micro, width = cfg.model, cfg.mesh, cfg.train.grad_accum, WIDTH[cfg.train.precision]
    axes, n = rules.a_S, _size(rules.a_S, mesh)
    heads = model.kv_heads / _size(rules.w_K, mesh)
    if not rules.w_K and rules.w_N:  # every shard sends those that its query heads read
        heads = min(model.kv_heads, model.n_heads / _size(rules.w_N, mesh))
    pair = 2 * positions_of(cfg, rules) * heads * model.head_width
    rounds = 2 if cfg.train.remat == "none" else 3
    return [
        Collective("keys and values", "permute", axes, n, pair * width, rounds * (n - 1) * model.n_layers * micro),
        Collective("gradients of keys and values", "permute", axes, n, pair * 4.0, n * model.n_layers * micro),
    ]


def table(found: list[Collective], mesh: MeshConfig, hardware: Hardware) -> list[dict[str, Any]]:
    """One row for each collective: what, operation, axes, devices, count, bytes that a device sends, seconds."""
    return [
        {
            "what": one.what,
            "operation": one.operation,
            "axes": list(one.axes),
            "devices": one.devices,
            "count": one.count,
            "sent": one.sent,
            "seconds": one.sent / bandwidth_of(one.axes, mesh, hardware),
        }
        for one in found
    ]
