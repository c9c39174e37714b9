"""Weights and batches changed on the host: what would be computed on a device would be compiled, and a program that is compiled
in the middle of a run is a symptom of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.model.spec import named_leaves
from jaxlm.train.state import TrainState

Change = Callable[[np.ndarray], np.ndarray]


def with_params(state: TrainState, **changes: Change) -> TrainState:
    """The state with other parameters. changes: by the last part of a parameter's name; takes its array, gives another."""
    return dataclasses.replace(state, params=changed(state.params, **changes))


def changed(tree: Any, **changes: Change) -> Any:
    """A tree of arrays in which those whose name ends so are others. Raises KeyError for a name without a leaf."""
    named = named_leaves(tree)
    last = {name.rsplit("/", 1)[-1]: name for name in named}
    for name, change in changes.items():
        leaf = named[last[name]]
        named[last[name]] = moved(change(np.array(leaf)), leaf)
    return jax.tree.unflatten(jax.tree.structure(tree), named.values())


def all_changed(tree: Any, change: Change) -> Any:
    """A tree of arrays of which each is another."""
    return jax.tree.map(lambda leaf: moved(change(np.array(leaf)), leaf), tree)


def moved(array: np.ndarray, like: jax.Array) -> jax.Array:
    """A NumPy array in the dtype of a jax array, and where that lies."""
    return jax.device_put(array.astype(like.dtype), like.sharding)


def layer(index: int, change: Change) -> Change:
    """A change of one layer of a stacked parameter."""

    def of_layer(array: np.ndarray) -> np.ndarray:
        array[index] = change(array[index])
        return array

    return of_layer


def times(factor: float) -> Change:
    """Every number multiplied."""
    return lambda array: array * np.float32(factor)


def rounded(array: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, the nearest, ties to even."""
    bits = array.astype(np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept: np.ndarray = ((bits + up) & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


def flipped(array: np.ndarray, bit: int, at: int) -> np.ndarray:
    """One bit of one number the other way. at: its place in the flat array."""
    array = np.ascontiguousarray(array)
    array.view(np.uint32).reshape(-1)[at] ^= np.uint32(1 << bit)
    return array
