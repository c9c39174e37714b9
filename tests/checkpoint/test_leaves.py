"""Leaves by name: digests, host copies, what is not finite, what does not match."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import struct

from jaxlm.checkpoint import LeafRecord, NonFinite, first_nonfinite, leaf_records
from jaxlm.checkpoint.leaves import SHOWN, fill, host_leaves, leaf_sha256, require_match
from jaxlm.contract import ContractError


@struct.dataclass
class Node:
    weight: Any
    bias: Any = None


@pytest.mark.parametrize(("dtype", "shape"), [("<f4", (2, 3)), ("<i8", ()), ("|b1", (4,)), ("<f2", (0, 5))])
def test_digests_are_sha256_over_dtype_shape_and_bytes(dtype, shape):
    data = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    text = f"{data.dtype.name}|{','.join(map(str, shape))}|".encode()
    assert leaf_sha256(data, shape, data.dtype.name) == hashlib.sha256(text + data.tobytes()).hexdigest()


def test_digests_tell_dtype_shape_and_order_apart():
    base = np.arange(6, dtype=np.int32)
    variants = [base, base.reshape(2, 3), base.reshape(3, 2), base[::-1], base.view(np.uint32), base.view(np.float32)]
    assert len({record.sha256 for record in leaf_records({str(i): v for i, v in enumerate(variants)}).values()}) == 6


def test_digests_do_not_depend_on_memory_layout_byte_order_or_the_side_of_the_array():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = {"c": base, "fortran": np.asfortranarray(base), "big": base.astype(">f4"), "jax": jnp.asarray(base)}
    assert len(set(leaf_records(same).values())) == 1


def test_records_survive_json():
    import dataclasses
    import json

    record = leaf_records({"a": jnp.ones((2, 3), jnp.bfloat16)})["a"]
    assert (record.shape, record.dtype) == ((2, 3), "bfloat16")
    assert LeafRecord.from_json(json.loads(json.dumps(dataclasses.asdict(record)))) == record


def test_keys_are_recorded_with_their_implementation_and_the_shape_of_the_keys():
    keys = jax.random.split(jax.random.key(3), 4)
    leaf = host_leaves({"k": keys})["k"]
    assert (leaf.shape, leaf.dtype) == ((4,), "key<fry>")
    np.testing.assert_array_equal(leaf.data, jax.random.key_data(keys))
    assert leaf_records({"k": jax.random.key(0, impl="rbg")})["k"].dtype == "key<rbg>"


def test_host_copies_share_no_memory_with_the_tree():
    tree = {"numpy": np.ones(5, np.float32), "jax": jnp.ones(5)}
    leaves = host_leaves(tree)
    tree["numpy"][:] = 7
    jax.jit(lambda x: x * 3, donate_argnums=0)(tree["jax"]).block_until_ready()
    for leaf in leaves.values():
        np.testing.assert_array_equal(leaf.data, np.ones(5))
    assert not np.shares_memory(leaves["numpy"].data, tree["numpy"])


def test_sharded_leaves_are_put_together():
    mesh = jax.make_mesh((8,), ("x",))
    data = np.arange(64, dtype=np.int32).reshape(8, 8)
    array = jax.device_put(data, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x")))
    np.testing.assert_array_equal(host_leaves({"a": array})["a"].data, data)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (1.5, "leaf 'x': expected a jax or NumPy array, found float"),
        ("text", "leaf 'x': .* found str"),
        (np.array(["a"]), "leaf 'x': expected numbers, booleans or PRNG keys, found dtype <U1"),
        (np.array([object()]), "leaf 'x': .* found dtype object"),
    ],
)
def test_leaves_that_are_no_arrays_are_refused_by_name(leaf, message):
    with pytest.raises(TypeError, match=message):
        host_leaves({"x": leaf})


# ---- not finite --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.complex64])
def test_the_first_leaf_that_is_not_finite_is_named_with_its_count(bad, dtype):
    tree = {"a": np.zeros(3, dtype), "b": np.array([0, bad, bad, 1], dtype), "c": np.array([bad], dtype)}
    assert first_nonfinite(tree) == NonFinite("b", 2, 4)
    assert first_nonfinite({"a": tree["a"], "i": np.array([2**31 - 1], np.int32), "k": jax.random.key(0)}) is None


# ---- what is recorded against what is asked for ------------------------------------------------------------------


def like(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in leaves.items()}


def test_every_leaf_that_differs_is_named_with_both_values():
    records = leaf_records({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int32), "held": np.zeros(1, np.int8)})
    with pytest.raises(ContractError) as caught:
        require_match(records, like(a=((3, 2), np.float32), b=((4,), np.float16), asked=((), bool)), artifact="here")
    error = caught.value
    assert error.expected == "a float32[3,2]; asked bool[]; b float16[4]; no leaf held"
    assert error.found == "a float32[2,3]; no leaf asked; b int32[4]; held int8[1]"
    assert "at here" in str(error)
    assert "resolved.json" in str(error)


def test_past_a_screenful_the_leaves_are_counted():
    wanted = like(**{f"l{i:03d}": ((1,), np.float32) for i in range(SHOWN + 5)})
    with pytest.raises(ContractError, match=r"and 5 more leaves"):
        require_match({}, wanted, artifact="here")


def test_a_match_passes():
    tree = {"a": jnp.ones((2,), jnp.bfloat16), "k": jax.random.key(1)}
    require_match(leaf_records(tree), tree, artifact="here")
    require_match(leaf_records(tree), jax.eval_shape(lambda: tree), artifact="here")


def test_64_bits_are_refused_where_jax_would_cast_them():
    with pytest.raises(ContractError, match=r"leaf a.*expected int64, found int32.*jax_enable_x64"):
        fill({"a": jax.ShapeDtypeStruct((1,), np.int64)}, {"a": np.array([2**40])})
    kept = fill({"a": np.zeros(1, np.int64)}, {"a": np.array([2**40])})["a"]
    assert kept.dtype == np.int64
    assert int(kept[0]) == 2**40
