"""Bitwise digests of arrays, one for each device, computed where the bits are.

Two integers of 32 bits a leaf and device leave the device, whatever the size of the leaf. Everything is integer arithmetic
modulo 2**32, so a digest is exact and does not depend on the order in which a device adds. A word and its position are mixed
by a bijection before they are added: one changed word always changes the digest, words that swap places or several changed
words do so but for one chance in 2**64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.model.spec import named_leaves


@dataclass(frozen=True)
class Digests:
    """Digests of a tree. table: uint64 [devices, leaves]; devices: in the order of the mesh; leaves: by name.

    holders: for each leaf the number of its shard on each device, int [leaves, devices]; equal numbers promise equal bits.
    """

    table: np.ndarray
    devices: tuple[jax.Device, ...]
    leaves: tuple[str, ...]
    holders: np.ndarray


def digests(tree: Any) -> Digests:
    """The digest of every leaf of `tree` on every device, on every process of the mesh, which must all call this together.

    Leaves: arrays of one mesh, of any dtype, typed PRNG keys among them. What lies on a single device without a mesh is
    digested there. Raises ValueError, naming the leaf, for an array of another mesh or of a sharding without one.
    """
    named = {name: _words(leaf) for name, leaf in named_leaves(tree).items()}
    if not named:
        return Digests(np.zeros((0, 0), np.uint64), (), (), np.zeros((0, 0), np.int64))
    shardings = {name: _sharding(name, leaf) for name, leaf in named.items()}
    mesh = next(iter(shardings.values())).mesh
    for name, sharding in shardings.items():
        if sharding.mesh != mesh:
            raise ValueError(f"leaf {name!r}: expected an array on the mesh of the others, {mesh}, found {sharding.mesh}")
    placed = [jax.device_put(leaf, shardings[name]) for name, leaf in named.items()]
    lanes = np.asarray(_program(mesh, tuple(s.spec for s in shardings.values()))(placed)).astype(np.uint64)
    devices = tuple(mesh.devices.flat)
    holders = np.stack([_shard_numbers(shardings[name], leaf.shape, devices) for name, leaf in named.items()])
    return Digests((lanes[..., 0] << np.uint64(32)) | lanes[..., 1], devices, tuple(named), holders)


def _words(leaf: Any) -> jax.Array:
    """A leaf as an array of numbers: of PRNG keys, their data."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _sharding(name: str, leaf: jax.Array) -> NamedSharding:
    if isinstance(leaf.sharding, NamedSharding):
        entries = list(leaf.sharding.spec)
        while entries and entries[-1] is None:  # P() and P(None) lay an array out alike, and are one program
            entries.pop()
        return NamedSharding(leaf.sharding.mesh, P(*entries))
    if len(leaf.sharding.device_set) > 1:
        raise ValueError(f"leaf {name!r}: expected a sharding with a mesh (NamedSharding), found {leaf.sharding}")
    return NamedSharding(Mesh(np.asarray(list(leaf.sharding.device_set)), ("device",)), P())


def _shard_numbers(sharding: NamedSharding, shape: tuple[int, ...], devices: tuple[jax.Device, ...]) -> np.ndarray:
    """Which shard each device holds, int [devices]: devices of one number should hold the same bits."""
    index = sharding.devices_indices_map(shape)
    parts = [tuple((s.start, s.stop) for s in index[device]) for device in devices]
    number = {part: i for i, part in enumerate(dict.fromkeys(parts))}
    return np.asarray([number[part] for part in parts])


@functools.lru_cache(maxsize=8)
def _program(mesh: Mesh, specs: tuple[P, ...]) -> Any:
    """The compiled digest of leaves that are laid out so: uint32 [devices, leaves, 2], whole on every device."""

    def digest(leaves: list[jax.Array]) -> jax.Array:
        return jnp.stack([_digest(leaf) for leaf in leaves])[None]

    each = jax.shard_map(digest, mesh=mesh, in_specs=(list(specs),), out_specs=P(mesh.axis_names))
    return jax.jit(each, out_shardings=NamedSharding(mesh, P()))


def _digest(leaf: jax.Array) -> jax.Array:
    """uint32 [2] of one device's part of a leaf."""
    words = _bits(leaf).reshape(-1)
    position = jax.lax.iota(jnp.uint32, words.size)
    # An odd factor is invertible modulo 2**32, and so is every step of the mixing (MurmurHash3, fmix32): for a fixed position
    # the result is a bijection of the word.
    first = _mixed(words + position * jnp.uint32(0x9E3779B9))
    second = _mixed(first ^ (position * jnp.uint32(0x85EBCA6B) + jnp.uint32(0x27D4EB2F)))
    return jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in (first, second)])


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(leaf: jax.Array) -> jax.Array:
    """The bits of a leaf as uint32: one word of each element of up to 32 bits, two of one of 64."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.stack([_bits(leaf.real), _bits(leaf.imag)])
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    size = leaf.dtype.itemsize
    narrow = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    return narrow.astype(jnp.uint32)
