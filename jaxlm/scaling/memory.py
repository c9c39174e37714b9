"""Bytes on one device while a step runs: what stays, and what each phase of the step adds to it.

What stays is exact: shapes under the rules. What the layers keep for the backward pass is read from the traced code
(`jaxlm.scaling.residuals`). The rest is a model of what XLA allocates for scanned layers, whose constants were fitted to its
own `memory_analysis()` and are tested against it: what is at work in the backward pass of one block, the logits of one block
of positions, what the update needs beside the state.

XLA on a CPU differs in two ways that are modelled apart, so that the tests can compare: it widens weights and logits of
bfloat16 or float16 to float32 before it multiplies (jax 0.10's also whole stacks of bfloat16 activations, of all layers at
once); and attention goes tile by tile there, where accelerators without a kernel make the scores of so many queries of all rows
at once, and a kernel none. It also merges what unrolled layers compute twice, so that a policy saves nothing there; that is not
modelled.

Axes: B batch, T position, D model, F hidden, N query head, V vocabulary (padded), L layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
from jax.sharding import PartitionSpec

from jaxlm.config.schema import RunConfig
from jaxlm.model import block_shape, param_specs
from jaxlm.model.spec import ParamSpec, named_leaves
from jaxlm.parallel import AxisRules, rules_of
from jaxlm.scaling.collectives import WIDTH, positions_of
from jaxlm.scaling.residuals import kept_of
from pallas_kernels.xla import queries_at_once, tile_size

LABEL_BYTES = 4 * 4 + 1  # of a position in a batch: tokens, labels, segments, positions; the loss mask
SCORES = 4  # matrices of float32 scores that exist at once in the backward pass of attention
UPDATE = 2  # times the parameters: gradients and updates; the moments are written in place


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. resident: by name, what lies there between steps. phases: by name, what each phase of a step adds,
    by name. host: bytes that wait in the host's memory."""

    resident: dict[str, float]
    phases: dict[str, dict[str, float]]
    host: float

    @property
    def phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        """Bytes at the peak of a step."""
        return sum(self.resident.values()) + sum(self.phases[self.phase].values())


def memory(cfg: RunConfig, *, cpu: bool = False, kernel: bool = False) -> Memory:
    """The memory of one step of `cfg`, on one device of its mesh. Touches no device.

    cpu: as XLA allocates on a CPU. kernel: whether attention is a kernel's.
    """
    step = _Step(cfg, rules_of(cfg.mesh, cfg.model.kv_heads), cpu, kernel)
    total, kept, layers = sum(step.stored.values()), kept_of(cfg), cfg.model.n_layers
    activations = layers * kept.activations * (1 + kept.narrow if step.widens_activations else 1.0)
    host = activations if cfg.train.remat == "offload" and not cpu else 0.0
    waiting = {
        f"activations kept by {layers} layers": activations - host,
        "copies of weights kept by the layers": float(layers * kept.copies),
        "gradients of earlier micro-batches": total if cfg.train.grad_accum > 1 else 0.0,
    }
    stream = step.positions * cfg.model.d_model
    backward = waiting | {
        "gradients of the layers and the head": step.of_layers + step.stored[step.head],
        "weights of a layer in use, their gradients": 2 * step.layer_in_use,
    }
    at_work = _working(step)
    # Of a gradient that is summed over devices: before and after; a CPU sums before it scatters, and copies once more.
    sums = 1 + (cfg.mesh.size > 1) + (cpu and step.rules.gathers)
    tied = step.head == "embed"
    return Memory(
        resident={
            "parameters (float32, the master copy)": total,
            "moments of AdamW (float32)": 2 * total,
            "the batch": LABEL_BYTES * step.positions * cfg.train.grad_accum,
        },
        phases={
            "loss": {
                **waiting,
                "last activations and their gradient": kept.once + stream * step.width,
                "logits of one block of positions": _logits(step),
                "head as it is used": step.head_in_use * step.width if step.copies else 0.0,
                "gradient of the head": (1 + (cfg.mesh.size > 1)) * step.head_in_use * 4,
            },
            "backward of the feed-forward": {**backward, "one block at work": at_work},
            "backward of attention": {
                **backward,
                "one block at work": max(0.0, at_work - 4 * step.hidden * step.width),
                "scores of attention": _scores(step),
            },
            "embedding": {
                "gradients of earlier micro-batches": waiting["gradients of earlier micro-batches"],
                "gradients of all parameters": total + (step.stored[step.head] if tied else 0.0),
                "gradient of the embedding, unscattered": sums * step.head_in_use * step.width,
            },
            "update": {"gradients and updates": UPDATE * total},
        },
        host=host,
    )


@dataclass(frozen=True)
class _Step:
    """A micro-batch on one device: numbers and bytes that several phases need."""

    cfg: RunConfig
    rules: AxisRules
    cpu: bool
    kernel: bool

    @cached_property
    def width(self) -> int:
        """Bytes of a number in the compute dtype, as it is multiplied."""
        return 4 if self.cpu else WIDTH[self.cfg.train.precision]

    @cached_property
    def widens_activations(self) -> bool:
        """Whether activations that are kept in the compute dtype are made float32 as a whole, besides."""
        return self.cpu and self.cfg.train.precision == "bfloat16" and jax.__version_info__ < (0, 11)

    @cached_property
    def copies(self) -> bool:
        """Whether a weight in use is another array than the one that is stored: gathered, or cast."""
        return self.rules.gathers or self.width < 4

    @cached_property
    def positions(self) -> float:
        """Positions of a micro-batch."""
        return positions_of(self.cfg, self.rules)

    @cached_property
    def hidden(self) -> float:
        """Numbers of an activation of the hidden width."""
        return self.positions * self.cfg.model.ff_width / self.size(self.rules.a_F)

    @cached_property
    def specs(self) -> dict[str, ParamSpec]:
        """The parameters by name."""
        return named_leaves(param_specs(self.cfg.model))

    @cached_property
    def stored(self) -> dict[str, float]:
        """Bytes of each parameter's part, as it is stored."""
        return {path: 4 * self._numbers(spec, self.rules.weight(spec.dims)) for path, spec in self.specs.items()}

    @cached_property
    def of_layers(self) -> float:
        """Bytes of the layers' parameters, as they are stored."""
        return sum(size for path, size in self.stored.items() if path.startswith("blocks/"))

    @cached_property
    def head(self) -> str:
        """The name of the matrix that makes logits."""
        return "head" if "head" in self.specs else "embed"

    @cached_property
    def head_in_use(self) -> float:
        """Numbers of the head, and of the embedding, as they are used."""
        return self._numbers(self.specs[self.head], self.rules.used("VD"))

    @cached_property
    def layer_in_use(self) -> float:
        """Bytes of one layer's weights as they are used, where they are others than those stored."""
        numbers = sum(self._numbers(s, self.rules.used(s.dims)) for p, s in self.specs.items() if p.startswith("blocks/"))
        return numbers / self.cfg.model.n_layers * self.width if self.copies else 0.0

    def size(self, axes: tuple[str, ...]) -> int:
        """Shards that mesh axes make."""
        return math.prod(getattr(self.cfg.mesh, axis) for axis in axes)

    def _numbers(self, spec: ParamSpec, layout: PartitionSpec) -> float:
        axes = [axis for entry in layout if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        return math.prod(spec.shape) / self.size(tuple(axes))


def _logits(step: _Step) -> float:
    """Bytes of the logits of one block: float32, and their gradient in the compute dtype.

    Where the vocabulary is sharded, the maximum travels before the exponentials are taken, and a float32 gradient takes the
    place of the logits.
    """
    cfg, shards, width = step.cfg, step.size(step.rules.a_V), WIDTH[step.cfg.train.precision]
    _, positions = block_shape(math.ceil(step.positions), cfg.model, cfg.train.loss_chunk)
    gradient = (0 if width == 4 else width) if shards > 1 else step.width
    return (4 + gradient) * positions * cfg.model.padded_vocab / shards


def _working(step: _Step) -> float:
    """Bytes at work in the backward pass of one block.

    All that the pass reads, be it kept or just computed again, and what is on its way: four gradients of the width of the
    residual stream. Where the block is computed again as a whole, nothing is read in place: two of the hidden width besides,
    and two more of the residual stream's in float32.
    """
    whole = step.cfg.train.remat in ("block", "offload")
    read, width = kept_of(step.cfg, "nothing"), WIDTH[step.cfg.train.precision]
    stream, hidden = step.positions * step.cfg.model.d_model, 2 * step.hidden if whole else 0.0
    streams = 6 if whole and (width == 4 or step.widens_activations) else 4
    narrow = read.activations + (streams * stream + hidden) * width
    if not step.widens_activations:
        return narrow
    wide = read.activations * (1 + read.narrow) + (streams * stream + hidden) * 4
    return (narrow + wide) / 2 if whole else wide


def _scores(step: _Step) -> float:
    """Bytes of the scores of attention that exist at once: of one tile on a CPU, of some queries of all rows elsewhere."""
    if step.kernel:
        return 0.0
    heads = step.cfg.model.n_heads / step.size(step.rules.a_N)
    length = step.cfg.model.context_length / step.size(step.rules.a_T)
    if step.cpu:
        length = min(length, tile_size(int(heads)))
        return SCORES * 4 * heads * length * length
    return SCORES * 4 * step.positions * heads * queries_at_once(int(length))
