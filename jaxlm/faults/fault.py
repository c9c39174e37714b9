"""What a planted fault is: one declarative entry, which no detector reads.

An entry says what is changed and what has to notice it. It never contains a copy of the code that it disturbs: a function is
wrapped, an artifact is changed on the disk, a state or a batch is changed before a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from jaxlm.data import Batch
from jaxlm.train.state import TrainState

Layer = Literal[
    "tokenizer", "data", "batch", "model", "numerics", "optimizer", "distribution", "checkpoint", "inference", "evaluation"
]
LAYERS: tuple[Layer, ...] = get_args(Layer)

# What is done with the stack while the fault is there. build: shards are built from text and trained on. train: a run from
# its first step, on shards that are whole. resume: a run that was stopped at step `STOPPED` goes on. check, evaluate,
# generate: those verbs on a finished run.
Scene = Literal["build", "train", "resume", "check", "evaluate", "generate"]

STEPS = 200  # of the small run
STOPPED = 140  # where the run that is resumed was stopped; the public rules need 128 steps before they say anything
BEGINS = STOPPED + 1  # the first step after it


@dataclass(frozen=True)
class Patch:
    """Another function in the place of one, all the time. target: `module:name` or `module:Class.name`. make: takes the one
    that is there and returns the other."""

    target: str
    make: Callable[[Any], Any]


@dataclass(frozen=True)
class Program:
    """From step `Fault.at` on the step is another program: the one that is traced under these patches."""

    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Disturbed:
    """The state or the batch is another before step `Fault.at`, and, unless `once`, before every later one.

    change: (state, batch, step from 1) to the state and the batch that the step gets; arrays on the devices.
    """

    change: Callable[[TrainState, Batch, int], tuple[TrainState, Batch]]
    once: bool = True


@dataclass(frozen=True)
class Tampered:
    """Artifacts are changed behind the back of those who use them. change: takes the run's directory."""

    change: Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """One fault.

    mechanism: what happens, and why nothing says so by itself. symptom: what a person would see, and when. incident: where it
    happened, project and number. seen_by: contracts, probes or detectors any of which is right to speak. at: the first step
    that it touches, from 1; None where it is there before the first step. within: steps from `at` until it must be seen, that
    one counted as 0. layer_index, operation: where it has a place in the model, that place. config: fields of the small run
    that are others, by dotted name. unseen: why no detector can see it, where none can.
    """

    name: str
    layer: Layer
    mechanism: str
    symptom: str
    incident: str
    plant: tuple[Patch | Program | Disturbed | Tampered, ...]
    seen_by: tuple[str, ...]
    scene: Scene = "train"
    at: int | None = None
    within: int = 0
    layer_index: int | None = None
    operation: str = ""
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    unseen: str = ""
