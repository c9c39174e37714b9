"""The leaves of a pytree by name: their digests, their host copies, and what is not finite in them.

A leaf's name is its key path joined by `/` (`params/blocks/wq`, `optimizer/1/mu/embed`): a public name, which the manifest
of a checkpoint, every error and the data files on the disk use. `None` and empty containers are structure, not leaves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.contract import ContractError
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import processes


@dataclass(frozen=True)
class LeafRecord:
    """What a checkpoint promises about one leaf.

    shape: of the leaf; for typed PRNG keys the shape of the keys. dtype: its name (`bfloat16`, `key<fry>`).
    sha256: over `dtype|shape|` and the bytes in C order, little-endian; for PRNG keys the bytes of their key data.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> LeafRecord:
        """Rebuild a record from a manifest."""
        return cls(shape=tuple(body["shape"]), dtype=body["dtype"], sha256=body["sha256"])


class HostLeaf(NamedTuple):
    """One leaf in host memory. data: the bytes as NumPy holds them; for PRNG keys their uint32 key data."""

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray

    def record(self) -> LeafRecord:
        """Shape, dtype and digest of this leaf."""
        return LeafRecord(self.shape, self.dtype, leaf_sha256(self.data, self.shape, self.dtype))


@dataclass(frozen=True)
class NonFinite:
    """The first leaf that is not finite. path: its name; count: how many NaN or infinite values; size: of how many."""

    path: str
    count: int
    size: int


def leaf_sha256(data: np.ndarray, shape: tuple[int, ...], dtype: str) -> str:
    """sha256 over `dtype|shape|` and the C-order bytes of `data`, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{dtype}|{','.join(map(str, shape))}|".encode())
    # ml_dtypes' arrays have no buffer that hashlib takes, their bytes have; the view copies nothing.
    digest.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def shape_dtype(name: str, leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype name of an array or a `jax.ShapeDtypeStruct`. Raises TypeError, naming the leaf, for anything else."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(f"leaf {name!r}: expected a jax or NumPy array, found {type(leaf).__name__}; wrap it in jnp.asarray")
    if not (is_key(leaf.dtype) or jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_):
        raise TypeError(f"leaf {name!r}: expected numbers, booleans or PRNG keys, found dtype {leaf.dtype}")
    if is_key(leaf.dtype):
        return tuple(leaf.shape), str(leaf.dtype)
    return tuple(leaf.shape), np.dtype(leaf.dtype).name


def is_key(dtype: Any) -> bool:
    """Whether `dtype` is that of typed PRNG keys (`jax.random.key`)."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def host_leaves(tree: Any, *, copy: bool = True) -> dict[str, HostLeaf]:
    """Bring every leaf of `tree` to host memory; sharded arrays are put together.

    With `copy` the result shares no memory with `tree`, whose buffers may be donated at once. Raises TypeError for a leaf
    that is no array and ValueError for one of which another process holds a part.
    """
    named = named_leaves(tree)
    described = {name: shape_dtype(name, leaf) for name, leaf in named.items()}
    data = {}
    for name, leaf in named.items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"leaf {name!r}: expected an array that this process holds in full, found {leaf.sharding}; "
                "gather it first (jax.experimental.multihost_utils.process_allgather)"
            )
        data[name] = jax.random.key_data(leaf) if is_key(leaf.dtype) else leaf
    for array in data.values():  # start every transfer before the first is waited for
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    # On CPU np.asarray of a jax.Array is a view of the very buffer that the next step overwrites: hence the copy.
    return {name: HostLeaf(*described[name], _native(np.array(data[name], copy=copy or None))) for name in named}


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def leaf_records(tree: Any) -> dict[str, LeafRecord]:
    """Name -> shape, dtype and sha256 of every leaf of `tree` (jax and NumPy arrays, typed PRNG keys)."""
    return {name: leaf.record() for name, leaf in host_leaves(tree, copy=False).items()}


def first_nonfinite(tree: Any) -> NonFinite | None:
    """The first leaf with a NaN or an infinity, in the order of the tree, or None. Looks at every float and complex dtype."""
    return nonfinite_leaf(host_leaves(tree, copy=False))


def nonfinite_leaf(leaves: Mapping[str, HostLeaf]) -> NonFinite | None:
    """`first_nonfinite` for leaves that are in host memory already."""
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.data.dtype, jnp.inexact) and not (finite := np.isfinite(leaf.data)).all():
            return NonFinite(name, int(finite.size - np.count_nonzero(finite)), math.prod(leaf.shape))
    return None


SHOWN = 20  # leaves that an error spells out; past it they are counted


def require_match(records: Mapping[str, LeafRecord], like: Any, *, artifact: object) -> None:
    """Compare recorded leaves with the tree that they shall fill: names, shapes, dtypes. Reads no data.

    like: a pytree of arrays or `jax.ShapeDtypeStruct`. Raises ContractError naming every leaf that differs, with both values.
    """
    wanted = {name: shape_dtype(name, leaf) for name, leaf in named_leaves(like).items()}
    differing: list[tuple[str, str]] = []
    for name in sorted(wanted.keys() | records.keys()):
        asked = _describe(name, *wanted[name]) if name in wanted else f"no leaf {name}"
        record = records.get(name)
        held = _describe(name, record.shape, record.dtype) if record else f"no leaf {name}"
        if asked != held:
            differing.append((asked, held))
    if differing:
        rest = f"; and {len(differing) - SHOWN} more leaves" if len(differing) > SHOWN else ""
        raise ContractError(
            "checkpoint",
            artifact=artifact,
            expected="; ".join(asked for asked, _ in differing[:SHOWN]) + rest,
            found="; ".join(held for _, held in differing[:SHOWN]) + rest,
            remedy="Restore with the model and the optimizer that it was saved with (resolved.json of its run).",
        )


def _describe(name: str, shape: tuple[int, ...], dtype: str) -> str:
    return f"{name} {dtype}[{','.join(map(str, shape))}]"


def fill(like: Any, data: Mapping[str, np.ndarray]) -> Any:
    """A tree of the structure of `like` with the bytes of `data`, name by name, which `require_match` has compared before.

    A `jax.ShapeDtypeStruct` or a `jax.Array` becomes a `jax.Array` with its sharding, a NumPy array a NumPy array. Weak types
    are not kept. Raises ContractError for a 64-bit leaf of jax where `jax_enable_x64` is off, which would be cast.
    """
    filled = [_place(name, leaf, data[name]) for name, leaf in named_leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


def _place(name: str, like: Any, data: np.ndarray) -> Any:
    if isinstance(like, (np.ndarray, np.generic)):
        return data
    if not is_key(like.dtype) and (kept := jax.dtypes.canonicalize_dtype(data.dtype)) != data.dtype:
        raise ContractError(
            "checkpoint",
            artifact=f"leaf {name}",
            expected=data.dtype,
            found=kept,
            remedy="Set jax_enable_x64 (JAX_ENABLE_X64=1).",
        )
    sharding = getattr(like, "sharding", None)
    if isinstance(like, jax.Array) and not like.committed:
        sharding = None  # an array that lay wherever jax put it goes there again, and may meet arrays of other devices
    if is_key(like.dtype):
        implementations: list[Any] = []
        jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct((), like.dtype))
        keys = jax.random.wrap_key_data(jnp.asarray(data), impl=implementations[0])
        if sharding is not None and not sharding.is_fully_addressable:
            return jax.random.wrap_key_data(processes.put(data, sharding), impl=implementations[0])
        return keys if sharding is None else jax.device_put(keys, sharding)
    if sharding is not None and not sharding.is_fully_addressable:
        return jnp.copy(processes.put(data, sharding))  # a copy, for the reason given below
    # may_alias=False: a buffer that jax may donate must not be memory that NumPy owns.
    return jax.device_put(data, sharding, may_alias=False)
