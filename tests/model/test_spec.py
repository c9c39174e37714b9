"""The spec tree: keys of leaves, initial values, views, fingerprint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.params import Params
from jaxlm.model.spec import ParamSpec, abstract_tree, count_params, init_tree, leaf_key, named_leaves, spec_sha256

SPECS = {
    "b": {"w": ParamSpec((40, 50), "DF", "normal", std=0.1), "gain": ParamSpec((50,), "F", "ones")},
    "a": [ParamSpec((6,), "D", "zeros"), None],
}


def test_leaves_are_named_by_their_path_in_tree_order():
    assert list(named_leaves(SPECS)) == ["a/0", "b/gain", "b/w"]
    assert named_leaves(SPECS)["b/w"].dims == "DF"
    assert count_params(SPECS) == 2056


def test_names_are_key_paths_and_none_and_empty_containers_are_structure():
    tree = {"b": [np.zeros(1), (np.zeros(2), {})], "a": Params(np.zeros(3), None, None, None), "none": None}
    assert list(named_leaves(tree)) == ["a/embed", "b/0", "b/1/0"]
    assert list(named_leaves(np.zeros(1))) == ["."]


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two leaves are named 'a/b'.*rename a key"):
        named_leaves({"a/b": np.zeros(1), "a": {"b": np.zeros(1)}})


def test_initial_values_follow_the_spec():
    with jax.debug_key_reuse(True):
        values = init_tree(SPECS, jax.random.key(0))
    assert (np.asarray(values["b"]["gain"]) == 1).all()
    assert (np.asarray(values["a"][0]) == 0).all()
    w = np.asarray(values["b"]["w"])
    assert abs(w.mean()) < 4 * 0.1 / np.sqrt(w.size)
    assert w.std() == pytest.approx(0.1, rel=0.06)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(values)} == {"float32"}


def test_a_new_field_changes_no_other_initial_value():
    more = {**SPECS, "b": {**SPECS["b"], "another": ParamSpec((3, 3), "DD", "normal", std=1.0)}}
    less = {"b": {"w": SPECS["b"]["w"]}}
    values = [np.asarray(init_tree(specs, jax.random.key(7))["b"]["w"]) for specs in (SPECS, more, less)]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def test_every_path_and_every_seed_has_a_key_of_its_own():
    twins = {name: ParamSpec((64,), "D", "normal", std=1.0) for name in ("wq", "wk", "wv", "w_up")}
    values = [np.asarray(v) for seed in (0, 1) for v in init_tree(twins, jax.random.key(seed)).values()]
    correlations = np.corrcoef(values)[np.triu_indices(len(values), 1)]
    assert np.abs(correlations).max() < 0.6
    data = jax.random.key_data
    assert (data(leaf_key(jax.random.key(0), "a/b")) != data(leaf_key(jax.random.key(0), "a/c"))).any()


def test_the_key_of_a_path_is_the_same_on_every_machine():
    key, number = jax.random.key(0), 0x425CF146  # printf blocks/wq | sha256sum: 46f15c42...
    assert leaf_key(key, "blocks/wq") == jax.random.fold_in(key, number)


def test_abstract_leaves_have_shape_and_dtype_of_the_values():
    abstract, values = abstract_tree(SPECS), init_tree(SPECS, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), values)
    half = abstract_tree({"w": ParamSpec((2,), "D", "ones", dtype="bfloat16")})
    assert half["w"].dtype == jnp.bfloat16


def test_the_fingerprint_knows_names_shapes_dtypes_and_letters_but_not_initial_values():
    spec = ParamSpec((4, 4), "DF", "normal", std=1.0)
    changed = [
        {"w": spec},
        {"v": spec},
        {"w": dataclasses.replace(spec, shape=(4, 5))},
        {"w": dataclasses.replace(spec, dims="DV")},
        {"w": dataclasses.replace(spec, dtype="bfloat16")},
        {"w": spec, "v": spec},
        {"w": {"w": spec}},
    ]
    assert len({spec_sha256(tree) for tree in changed}) == len(changed)
    assert spec_sha256({"w": dataclasses.replace(spec, std=2.0)}) == spec_sha256({"w": spec})


def test_a_spec_has_one_letter_an_axis():
    with pytest.raises(AssertionError):
        ParamSpec((4, 4), "D")
