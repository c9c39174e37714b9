"""One tree, many views: `ParamSpec` at every leaf says shape, dtype, axis letters and initial distribution.

Initial values, shardings, abstract arrays, the parameter table and the checkpoint's paths all derive from the spec tree.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.contract import fingerprint


@dataclass(frozen=True)
class ParamSpec:
    """A parameter before it exists. dims: one letter of `jaxlm.axes.ALPHABET` an axis; std: of the normal distribution."""

    shape: tuple[int, ...]
    dims: str
    init: Literal["normal", "ones", "zeros"] = "normal"
    std: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.dims), (self.shape, self.dims)


def is_spec(leaf: Any) -> bool:
    """True for the leaves of a spec tree."""
    return isinstance(leaf, ParamSpec)


def path_name(key_path: tuple[Any, ...]) -> str:
    """A key path as the public name of a leaf: `blocks/wq`; `.` for a tree that is a leaf."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/") or "."


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, in the order of the tree. Raises ValueError where two leaves share a name."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if (name := path_name(path)) in named:
            raise ValueError(f"two leaves are named {name!r}: expected one name for one leaf; rename a key of the tree")
        named[name] = leaf
    return named


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """The key of a leaf: `fold_in(key, hash of its path)`, so that a new field changes no other's initial value."""
    return jax.random.fold_in(key, int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little"))


def init_leaf(spec: ParamSpec, key: jax.Array) -> jax.Array:
    """The initial value of one parameter."""
    if spec.init == "normal":
        return spec.std * jax.random.normal(key, spec.shape, spec.dtype)
    return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape, spec.dtype)


def init_tree(specs: Any, key: jax.Array) -> Any:
    """Initial values of a whole spec tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, spec: init_leaf(spec, leaf_key(key, path_name(path))), specs, is_leaf=is_spec
    )


def abstract_tree(specs: Any) -> Any:
    """`jax.ShapeDtypeStruct` at every leaf."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), specs, is_leaf=is_spec)


def spec_sha256(specs: Any) -> str:
    """Fingerprint of a spec tree: names, shapes, dtypes, dims. The checkpoint's contract with the model."""
    return fingerprint({path: [list(s.shape), s.dtype, s.dims] for path, s in named_leaves(specs).items()})


def count_params(specs: Any) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in named_leaves(specs).values())
