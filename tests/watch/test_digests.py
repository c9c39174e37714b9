"""Digests of arrays on devices, against a second implementation in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.watch.digests import digests

MESH = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)


def put(array, *spec):
    return jax.device_put(array, NamedSharding(MESH, P(*spec)))


def mixed(x):
    """fmix32 of MurmurHash3, in Python integers."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def digest(array):
    """The digest of an array from its bytes, in Python integers."""
    size = min(array.dtype.itemsize, 4)
    words = np.frombuffer(np.ascontiguousarray(array).tobytes(), f"<u{size}").tolist()
    first = [mixed((word + i * 0x9E3779B9) % 2**32) for i, word in enumerate(words)]
    second = [mixed(word ^ ((i * 0x85EBCA6B + 0x27D4EB2F) % 2**32)) for i, word in enumerate(first)]
    return (sum(first) % 2**32 << 32) | sum(second) % 2**32


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((8, 6)).astype(np.float32)
    wide[0, :4] = [np.nan, -0.0, np.inf, 1e-45]
    return {
        "bfloat16": wide.astype(ml_dtypes.bfloat16),
        "bool": wide > 0,
        "complex64": (wide[1:] + 1j * wide[:0:-1]).astype(np.complex64),
        "float16": wide.astype(np.float16),
        "float32": wide,
        "float8": wide.astype(ml_dtypes.float8_e4m3fn),
        "int32": rng.integers(-(2**31), 2**31, (8, 6)).astype(np.int32),
        "scalar": np.float32(1.5),
        "uint8": rng.integers(0, 256, (8, 6)).astype(np.uint8),
    }


def test_the_digest_of_every_dtype_is_that_of_its_bytes(arrays):
    found = digests({name: put(array) for name, array in arrays.items()})
    assert found.leaves == tuple(arrays)
    assert found.devices == tuple(MESH.devices.flat)
    assert (found.holders == 0).all()
    for leaf, (name, array) in enumerate(arrays.items()):
        flat = np.asarray([array.real, array.imag]) if name == "complex64" else np.asarray(array)
        assert {int(value) for value in found.table[:, leaf]} == {digest(flat)}, name


def test_a_sharded_leaf_has_a_digest_of_each_part_and_says_who_holds_it(arrays):
    wide = arrays["float32"]
    found = digests({"rows": put(wide, "fsdp"), "both": put(wide, ("data", "fsdp"), None), "columns": put(wide, None, "data")})
    assert found.leaves == ("both", "columns", "rows")
    assert found.holders.tolist() == [list(range(8)), [0] * 4 + [1] * 4, [0, 1, 2, 3] * 2]
    assert found.table[:, 0].tolist() == [digest(wide[i : i + 1]) for i in range(8)]
    assert found.table[:, 1].tolist() == [digest(wide[:, 3 * (i // 4) :][:, :3]) for i in range(8)]
    assert found.table[:, 2].tolist() == [digest(wide[2 * (i % 4) :][:2]) for i in range(8)]


def test_keys_are_digested_by_their_data():
    key = jax.random.key(3)
    found = digests({"key": put(key)})
    assert set(found.table[:, 0].tolist()) == {digest(np.asarray(jax.random.key_data(key)))}


@pytest.mark.parametrize("bit", [0, 1, 22, 23, 31])
def test_one_flipped_bit_changes_the_digest_on_its_device_alone(arrays, bit):
    wide = arrays["float32"]
    flipped = wide.copy()
    flipped.view(np.uint32)[5, 3] ^= np.uint32(1) << np.uint32(bit)
    before, after = (digests({"w": put(array, "fsdp")}).table[:, 0] for array in (wide, flipped))
    assert np.flatnonzero(before != after).tolist() == [2, 6]


def test_what_swaps_places_and_what_cancels_is_seen():
    words = np.arange(1, 9, dtype=np.uint32)
    swapped, shifted = words[[1, 0, *range(2, 8)]], np.roll(words, 1)
    moved = words + np.asarray([0, 0, 1, 0, 0, -1, 0, 0]).astype(np.uint32)
    zeros = [np.zeros(n, np.uint32) for n in (1, 2, 3)]
    names = {str(i): put(array) for i, array in enumerate([words, swapped, shifted, moved, *zeros])}
    assert len(set(digests(names).table[0].tolist())) == len(names)


def test_arrays_without_a_mesh_are_digested_where_they_lie():
    array = np.arange(5, dtype=np.int32)
    found = digests([jax.device_put(array, jax.devices()[3])])
    assert found.devices == (jax.devices()[3],)
    assert found.table.tolist() == [[digest(array)]]
    assert digests({}).leaves == ()


def test_leaves_of_two_meshes_are_refused_by_name():
    other = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    tree = {"a": put(jnp.ones(4)), "b": jax.device_put(jnp.ones(4), NamedSharding(other, P()))}
    with pytest.raises(ValueError, match="leaf 'b': expected an array on the mesh of the others"):
        digests(tree)
