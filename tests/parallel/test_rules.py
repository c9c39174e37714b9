"""The rules of every preset: what they lay where, and what they refuse."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.axes import ALPHABET
from jaxlm.config.schema import ConfigError, MeshConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.contract import InputError
from jaxlm.model import forward, param_specs
from jaxlm.model.spec import ParamSpec, named_leaves
from jaxlm.parallel import MESH_AXES, PRESETS, AxisRules, make_mesh, rules_of
from jaxlm.parallel.rules import sharding
from jaxlm.train.state import TrainState, initial_state

MODEL = ModelConfig(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, context_length=16, vocab_size=50, vocab_multiple=64, d_ff=32,
    attention_bias=True, qk_norm=True, tie_embeddings=False,
)  # fmt: skip
MESHES = {
    "single": MeshConfig(),
    "dp": MeshConfig(data=8, rules="dp"),
    "fsdp": MeshConfig(data=2, fsdp=4, rules="fsdp"),
    "tp": MeshConfig(data=4, tensor=2, rules="tp"),
    "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp"),
}
SPECS = named_leaves(param_specs(MODEL))


def config(name, **train):
    train = {"steps": 50, "batch_size": 8, **train}
    return RunConfig(model=MODEL, optim=OptimConfig(warmup_steps=1), train=TrainConfig(**train), mesh=MESHES[name])


@functools.cache
def laid_out(name):
    """The mesh of a preset, and the first state of a run on it."""
    mesh = make_mesh(MESHES[name])
    return mesh, initial_state(config(name), mesh)


def ruled(**axes):
    return AxisRules(**({f.name: () for f in dataclasses.fields(AxisRules)} | axes))


# ---- the rules themselves ----------------------------------------------------------------------------------------


def test_every_field_is_a_letter_of_the_alphabet_and_every_letter_has_one():
    fields = [f.name for f in dataclasses.fields(AxisRules)]
    assert {name[:2] for name in fields} == {"a_", "w_"}
    assert {name[2:] for name in fields} == set(ALPHABET)
    assert all(f.default is dataclasses.MISSING for f in dataclasses.fields(AxisRules))
    assert {letter for spec in SPECS.values() for letter in spec.dims} <= {name[2:] for name in fields if name[0] == "w"}


def test_the_presets_are_the_choices_of_the_config():
    assert list(PRESETS) == list(MESHES)
    for name, mesh in MESHES.items():
        assert rules_of(mesh) is PRESETS[name]
    with pytest.raises(ConfigError, match=f"--mesh.rules: expected one of {', '.join(PRESETS)}"):
        MeshConfig(rules="pp")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_mesh_axes_only_and_lays_no_array_of_the_model_twice_on_one(name):
    rules = PRESETS[name]
    assert {axis for f in dataclasses.fields(rules) for axis in getattr(rules, f.name)} <= set(MESH_AXES)
    for spec in SPECS.values():
        rules.weight(spec.dims), rules.used(spec.dims)
    for dims in ("BT", "BTD", "BTNH", "BTKH", "BTF", "BTV"):
        rules.activation(dims)
    rules.check(SPECS, MESHES[name])


@pytest.mark.parametrize(
    ("name", "stored", "used", "activation"),
    [
        ("single", P(None, None, None, None), P(None, None, None, None), P(None, "context", None)),
        ("dp", P(None, None, None, None), P(None, None, None, None), P("data", "context", None)),
        ("fsdp", P(None, "fsdp", None, None), P(None, None, None, None), P(("data", "fsdp"), "context", None)),
        ("tp", P(None, None, "tensor", None), P(None, None, "tensor", None), P("data", "context", None)),
        ("fsdp_tp", P(None, "fsdp", "tensor", None), P(None, None, "tensor", None), P(("data", "fsdp"), "context", None)),
    ],
)
def test_a_weight_is_stored_and_used_so_and_used_without_the_axes_of_the_batch(name, stored, used, activation):
    rules = PRESETS[name]
    assert (rules.weight("LDNH"), rules.used("LDNH"), rules.activation("BTD")) == (stored, used, activation)


def test_two_axes_on_one_dimension_are_gathered_one_by_one():
    rules = ruled(a_B=("data",), w_D=("data", "tensor"), w_F=("fsdp", "context"))
    assert rules.weight("DF") == P(("data", "tensor"), ("fsdp", "context"))
    assert rules.used("DF") == P("tensor", ("fsdp", "context"))


def test_two_dimensions_on_one_mesh_axis_are_refused():
    rules = ruled(w_D=("fsdp",), w_F=("tensor", "fsdp"), a_B=("data",), a_V=("data",))
    with pytest.raises(InputError, match=r"rules: w_LDF lays two dimensions on one mesh axis: .*'fsdp'"):
        rules.weight("LDF")
    with pytest.raises(InputError, match=r"rules: a_BTV lays two dimensions on one mesh axis"):
        rules.activation("BTV")
    with pytest.raises(InputError, match="w_DF lays two dimensions"):
        rules.check({"w_up": ParamSpec((4, 4), "DF")}, MeshConfig(fsdp=2, tensor=2, data=2))
    assert rules.weight("LD") == P(None, "fsdp")


@pytest.mark.parametrize(("size", "nearest"), [(1, 4), (5, 4), (7, 8), (9, 8), (11, 12), (1023, 1024)])
def test_a_dimension_that_its_shards_do_not_divide_is_named_with_the_nearest_size(size, nearest):
    specs = {"embed": ParamSpec((64, 16), "VD"), "blocks/w_up": ParamSpec((3, 16, size), "LDF")}
    message = rf"^blocks/w_up: axis F has size {size}, which 4 shards \(tensor\) do not divide; .* that works is {nearest}$"
    with pytest.raises(InputError, match=message):
        PRESETS["tp"].check(specs, MeshConfig(tensor=4, rules="tp"))
    specs["blocks/w_up"] = ParamSpec((3, 16, nearest), "LDF")
    PRESETS["tp"].check(specs, MeshConfig(tensor=4, rules="tp"))


def test_the_shards_of_two_axes_multiply():
    with pytest.raises(InputError, match=r"^w: axis D has size 12, which 8 shards \(data\*fsdp\) do not divide; .* is 16$"):
        ruled(w_D=("data", "fsdp")).check({"w": ParamSpec((12,), "D")}, MeshConfig(data=2, fsdp=4))


@pytest.mark.parametrize(("name", "axis"), [("single", "data"), ("dp", "fsdp"), ("fsdp", "tensor"), ("tp", "fsdp")])
def test_a_mesh_axis_on_which_nothing_is_laid_is_refused(name, axis):
    mesh = dataclasses.replace(MESHES[name], **{axis: 3})
    with pytest.raises(ConfigError, match=f"^--mesh.{axis}: expected 1, as --mesh.rules {name} lays nothing on it, found 3$"):
        PRESETS[name].check(SPECS, mesh)


def test_every_preset_cuts_the_sequence_over_context():
    for mesh in MESHES.values():
        rules_of(dataclasses.replace(mesh, context=3)).check(SPECS, dataclasses.replace(mesh, context=3))
        assert rules_of(mesh).a_T == rules_of(mesh).a_S == ("context",)


@pytest.mark.parametrize(
    ("kv_heads", "tensor", "whole"), [(0, 4, False), (4, 4, False), (8, 4, False), (2, 4, True), (3, 2, True)]
)
def test_key_value_heads_that_the_shards_do_not_divide_are_whole(kv_heads, tensor, whole):
    rules = rules_of(MeshConfig(tensor=tensor, rules="tp"), kv_heads)
    assert (rules.w_K == rules.a_K == ()) is whole
    assert dataclasses.replace(rules, a_K=("tensor",), w_K=("tensor",)) == PRESETS["tp"]


def test_an_unknown_mesh_axis_is_named():
    with pytest.raises(InputError, match=r"unknown mesh axes \['expert', 'pipe'\]; expected some of \('data',"):
        sharding(make_mesh(MeshConfig()), P(("data", "pipe"), None, "expert"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_table_says_what_lies_on_one_device(name):
    rules, (_, state) = rules_of(MESHES[name]), laid_out(name)
    rows = rules.table(SPECS, MESHES[name])
    leaves = named_leaves(state.params)
    assert [row[0] for row in rows] == list(leaves)
    for path, dims, shape, layout, size in rows:
        leaf = leaves[path]
        assert (dims, shape) == (SPECS[path].dims, str(list(leaf.shape)))
        assert {shard.data.nbytes for shard in leaf.addressable_shards} == {size}
        sharded = {dims[axis] for axis, size in enumerate(leaf.addressable_shards[0].data.shape) if size < leaf.shape[axis]}
        assert {word[0] for word in layout.split()} - {"w"} == sharded, layout


def test_the_table_counts_bytes_of_the_dtype():
    specs = {"w": ParamSpec((8, 6), "DF", dtype="bfloat16")}
    assert PRESETS["fsdp"].table(specs, MeshConfig(fsdp=4, rules="fsdp")) == [("w", "DF", "[8, 6]", "D:fsdp", 8 * 6 * 2 // 4)]
    assert PRESETS["single"].table(specs, MeshConfig())[0][3] == "whole"
    assert PRESETS["fsdp_tp"].table(specs, MeshConfig())[0][3] == "D:fsdp F:tensor"


# ---- on eight devices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_and_moments_lie_as_the_rules_say(name):
    mesh, state = laid_out(name)
    moments = [part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    for tree in (state.params, moments[0].mu, moments[0].nu):
        for path, leaf in named_leaves(tree).items():
            spec = SPECS[path]
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PRESETS[name].weight(spec.dims)), leaf.ndim), path
            letters = [getattr(PRESETS[name], f"w_{letter}") for letter in spec.dims]
            shards = [math.prod(getattr(MESHES[name], axis) for axis in axes) for axes in letters]
            local = tuple(size // n for size, n in zip(spec.shape, shards, strict=True))
            assert {shard.data.shape for shard in leaf.addressable_shards} == {local}, path
            assert len(leaf.addressable_shards) == MESHES[name].size


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("single", "dp")])
def test_a_preset_that_shards_weights_stores_less_on_a_device(name):
    total = sum(row[-1] for row in PRESETS["single"].table(SPECS, MESHES["single"]))
    share = sum(row[-1] for row in PRESETS[name].table(SPECS, MESHES[name])) / total
    sizes = MESHES[name]
    assert share < 1.2 / (sizes.fsdp * sizes.tensor)


def test_a_contraction_that_is_ambiguous_is_an_error_and_not_a_silent_sum():
    mesh = make_mesh(MESHES["fsdp"])
    assert set(mesh.axis_types) == {AxisType.Explicit}
    with jax.set_mesh(mesh):
        x = jax.device_put(np.ones((8, 16), np.float32), NamedSharding(mesh, P(None, "fsdp")))
        with pytest.raises(Exception, match=r"[Cc]ontracting dimensions are sharded"):
            jax.jit(lambda a: jnp.einsum("BD,ED->BE", a, a))(x)


def test_without_a_mesh_the_rules_are_the_identity():
    rules = PRESETS["fsdp_tp"]
    x = np.ones((2, 3), np.float32)
    assert rules.gather(x, "DF") is x
    np.testing.assert_array_equal(rules.einsum("BD,FD->BF", x, x), np.full((2, 2), 3.0))
    np.testing.assert_array_equal(rules.rows(jnp.arange(6.0).reshape(3, 2), np.array([[2, 0]])), [[[4.0, 5.0], [0.0, 1.0]]])
    params = TrainState.create(config("single")).params
    tokens = np.random.default_rng(0).integers(0, 50, (8, 16), dtype=np.int32)
    logits = forward(params, tokens, MODEL)
    np.testing.assert_array_equal(logits, forward(params, tokens, MODEL, rules=rules))
