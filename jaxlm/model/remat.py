"""Rematerialisation by name: which activations of a block are kept for the backward pass, and which are computed again.

| name | kept of every block | computed again |
|---|---|---|
| none | products, attention and sums: all that is worth keeping | casts and gathers of weights, what is cheap elementwise |
| dots | the results of matrix products with weights | norms, rotations, activations, attention |
| block | the block's input | the whole block |
| offload | the block's input, in the host's memory | the whole block |

A weight that is cast or gathered for its use is cast and gathered again under every name: kept, what is used in all layers
would be one more copy of the model, and the whole of it on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.parallel.products import NAME

INPUT = "block_input"


# Layouts and casts, of weights above all; and elementwise operations, which cost more to write and read than to make again.
_AGAIN = {"reshard", "convert_element_type", "mul", "div", "sub", "logistic", "tanh", "erf", "integer_pow", "square", "rsqrt"}


def _worth_keeping(primitive: Any, *operands: Any, **params: Any) -> bool:
    return primitive.name not in _AGAIN


def named_input(x_BTD: jax.Array) -> jax.Array:
    """A block's input, under the name by which `offload` finds it."""
    return checkpoint_name(x_BTD, INPUT)


def rematerialised(step: Callable, remat: str, *, scanned: bool) -> Callable:
    """`step`, one block, under a policy: a name of `TrainConfig.remat`, or "nothing", which computes nothing again.

    scanned: whether it is the body of a scan, where forward and backward are loops of their own, and nothing has to keep the
    compiler from merging what is computed twice.
    """
    policies = jax.checkpoint_policies
    if remat == "nothing":
        return step
    if remat == "none":
        policy = _worth_keeping
    elif remat == "dots":
        policy = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(NAME)
        )
    elif remat == "block":
        policy = policies.nothing_saveable
    elif remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[INPUT], offload_src="device", offload_dst="pinned_host"
        )
    else:
        raise ValueError(f"remat: expected none, dots, block or offload, found {remat!r}")
    return jax.checkpoint(step, policy=policy, prevent_cse=not scanned)
