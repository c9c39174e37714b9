"""Faults of several devices, and of single bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.data import Batch
from jaxlm.faults.fault import BEGINS, Disturbed, Fault, Patch, Program
from jaxlm.faults.leaves import flipped, layer, with_params
from jaxlm.train.state import TrainState

TWO = {"mesh.data": 2, "mesh.rules": "dp", "watch.replicas_every": 10}


def _drifted(change: Any) -> Any:
    """The last replica of the embedding is another. change: takes its array."""

    def disturb(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
        leaf = state.params.embed
        held = [np.array(shard.data) for shard in leaf.addressable_shards]
        held[-1] = change(held[-1])
        devices = [shard.device for shard in leaf.addressable_shards]
        arrays = [jax.device_put(array, device) for array, device in zip(held, devices, strict=True)]
        embed = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)
        return dataclasses.replace(state, params=dataclasses.replace(state.params, embed=embed)), batch

    return disturb


def _bit(bit: int) -> Any:
    """One bit of one weight of layer 1 is another."""

    def disturb(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Batch]:
        return with_params(state, w_down=layer(1, lambda array: flipped(array, bit, 77))), batch

    return disturb


class _Unsteady:
    """Each second computation of a step begins with another bit in a weight: a core that multiplies wrong now and then."""

    def __init__(self, real: Any):
        self.real, self.calls = real, 0

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        self.calls += 1
        if int(state.step) + 1 >= BEGINS and self.calls % 2:
            state, batch = _bit(12)(state, batch, 0)
        return self.real(state, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def _slower_replica(array: np.ndarray) -> np.ndarray:
    return array * np.float32(1.0 + 1e-6)


def _doubled_loss(real: Any) -> Any:
    def gradients(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        return found._replace(grads=jax.tree.map(lambda g: g * 2.0, found.grads))

    return gradients


def _lost_mean(real: Any) -> Any:
    """The norms of the gradient are those of one shard: the sum over the others was forgotten."""
    return lambda norms: real({name: norm for index, (name, norm) in enumerate(norms.items()) if index % 2})


class _Stale:
    """`put_batch`, which from the second call on gives what it made in the one before."""

    def __init__(self, real: Callable):
        self.real = real
        self.last: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        made = self.real(*arguments, **options)
        given, self.last = self.last or made, made
        return given


FAULTS = (
    Fault(
        name="replica_drifted",
        layer="distribution",
        mechanism="One replica of the embedding is another by a millionth; JAX takes the sharding's word for equality.",
        symptom="None; a restart heals it, as the first replica is saved.",
        incident="OLMo-core #319",
        plant=(Disturbed(_drifted(_slower_replica)),),
        seen_by=("replicas",),
        at=BEGINS,
        within=10,
        config=TWO,
    ),
    Fault(
        name="bit_flip_in_a_replica",
        layer="distribution",
        mechanism="The lowest bit of one weight flips in the memory of one device.",
        symptom="None.",
        incident="arXiv 2502.12340; Llama 3: 6 silent corruptions in 54 days",
        plant=(Disturbed(_drifted(lambda array: flipped(array, 0, 1234))),),
        seen_by=("replicas",),
        at=BEGINS,
        within=10,
        config=TWO,
    ),
    Fault(
        name="exponent_bit_flip",
        layer="distribution",
        mechanism="The highest bit of the exponent of one weight flips.",
        symptom="NaN or a spike, from nowhere.",
        incident="Gemini report 2023: silent corruption every week or two; Fast-LLM #77",
        plant=(Disturbed(_bit(30)),),
        seen_by=("parameter_jump", "nonfinite", "exploding_layer", "loss_spike", "norm_sum", "frozen_parameter"),
        at=BEGINS,
        within=1,
        layer_index=1,
    ),
    Fault(
        name="unsteady_core",
        layer="distribution",
        mechanism="A core multiplies wrong now and then: a step computed twice gives other bits.",
        symptom="None.",
        incident="arXiv 2502.12340 (real nodes), Fast-LLM #77 (one node)",
        plant=(Patch("jaxlm.train.recompute:train_step", _Unsteady),),
        seen_by=("recompute",),
        at=BEGINS,
        within=10,
        config={"watch.recompute_every": 10},
    ),
    Fault(
        name="mantissa_bit_flip",
        layer="distribution",
        mechanism="A middle bit of the mantissa of one weight flips in memory, on the only device that holds it.",
        symptom="None: the weight moves by less than an update does.",
        incident="the flip that a pilot of 27 faults missed (bit 21)",
        plant=(Disturbed(_bit(12)),),
        seen_by=(),
        at=BEGINS,
        unseen="There is one copy of the state: no figure of a step tells a moved bit from an update. With two replicas "
        "`replicas` sees it (bit_flip_in_a_replica), and on the disk the digests of the checkpoint do.",
    ),
    Fault(
        name="gradient_sum_over_replicas",
        layer="distribution",
        mechanism="From some step on the all-reduce adds where it should average.",
        symptom="Twice the gradient norm; Adam hides the rest.",
        incident="averaging lost with another collective library; no report is cited",
        plant=(Program((Patch("jaxlm.faults.planting:compute_gradients", _doubled_loss),)),),
        seen_by=("grad_norm", "layer_gradient", "clipping", "backward_norm"),
        at=BEGINS,
        within=59,
        config=TWO,
    ),
    Fault(
        name="norm_of_one_shard",
        layer="distribution",
        mechanism="The norm that gradients are clipped by is summed over some of the shards.",
        symptom="Gradients are clipped less than they should be.",
        incident="hyper-parallel #526 (28 to 48), praxis #6",
        plant=(Patch("jaxlm.train.step:total_norm", _lost_mean),),
        seen_by=("planted_nan", "update_rule", "norm_sum"),
    ),
    Fault(
        name="stale_device_batch",
        layer="distribution",
        mechanism="A step computes with the batch of the step before it, whose buffers were not yet filled anew.",
        symptom="None: every batch is trained on, a step late; the first one twice.",
        incident="buffers reused before a copy is done; no report is cited",
        plant=(Patch("jaxlm.train.session:put_batch", lambda real: _Stale(real)),),
        seen_by=("batch",),
        at=2,
    ),
)
