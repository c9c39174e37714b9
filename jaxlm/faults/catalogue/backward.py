"""Faults of what flows back through the model: gradients that are lost in one place, and nowhere near it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.faults.fault import Fault, Patch


def _last_block(real: Callable) -> Callable:
    """The gradient of the head begins anew with every block of positions."""

    def block(how: Any, vocab: Any, head_VD: jax.Array, d_head: jax.Array | None, *arguments: Any) -> Any:
        return real(how, vocab, head_VD, d_head if d_head is None else jnp.zeros_like(d_head), *arguments)

    return block


def _first_block(real: Callable) -> Callable:
    """Past the first block of positions nothing flows back to the last activations."""

    def by_blocks(how: Any, head_VD: jax.Array, x_BTD: jax.Array, *arguments: Any) -> Any:
        found = real(how, head_VD, x_BTD, *arguments)
        if len(found) < 4:
            return found
        rows, length = x_BTD.shape[:2]
        first_BT = (jnp.arange(rows * length) < how.chunk).reshape(rows, length)
        return (*found[:2], jnp.where(first_BT[..., None], found[2], 0), *found[3:])

    return by_blocks


def _late_keys(real: Callable) -> Callable:
    """Nothing flows back to the keys and values of the last quarter of each row."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *arguments: Any) -> Any:
        late = (jnp.arange(k.shape[1]) >= 48)[None, :, None, None]
        held_k, held_v = (jnp.where(late, jax.lax.stop_gradient(x), x) for x in (k, v))
        return real(q, held_k, held_v, *arguments)

    return attend


FAULTS = (
    Fault(
        name="head_gradient_of_last_block",
        layer="model",
        mechanism="The gradient of the head is that of the last block of positions, the sum of the others is dropped.",
        symptom="The loss falls, a little slower: the head learns from some of the tokens.",
        incident="a carry that a loop over blocks forgets; no report is cited",
        plant=(Patch("jaxlm.model.head:_block", _last_block),),
        seen_by=("gradient_of_places", "accumulation", "gradient_of_loss"),
        config={"train.loss_chunk": 64},
    ),
    Fault(
        name="activations_of_first_block",
        layer="model",
        mechanism="Only the first block of positions sends a gradient back from the head into the model.",
        symptom="The loss falls, slower: the blocks learn from some of the tokens.",
        incident="a slice that a chunked cross-entropy gets wrong; no report is cited",
        plant=(Patch("jaxlm.model.head:_by_blocks", _first_block),),
        seen_by=("gradient_of_places", "accumulation", "gradient_of_loss"),
        config={"train.loss_chunk": 64},
    ),
    Fault(
        name="late_keys_without_gradient",
        layer="model",
        mechanism="Keys and values in the last quarter of the context get no gradient.",
        symptom="None: what they miss is a few percent of the gradient of attention.",
        incident="blocks of keys that a backward kernel leaves out, as with lengths that are no multiple of a block; "
        "no report is cited",
        plant=(Patch("jaxlm.model.transformer:attend", _late_keys),),
        seen_by=("gradient_of_places",),
    ),
)
