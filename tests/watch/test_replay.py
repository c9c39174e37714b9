"""The replay: planted equations are named by primitive, line, layer and direction; clean programs give nothing."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import MeshConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.data import Batch
from jaxlm.model import transformer
from jaxlm.model.layers import rms_norm
from jaxlm.parallel import make_mesh
from jaxlm.train.state import initial_state, put_batch
from jaxlm.train.step import _train_step
from jaxlm.watch.interpreter import Interpreter, Value, Where
from jaxlm.watch.jaxpr import on_one_device, traced, without_mesh
from jaxlm.watch.program import program_of
from jaxlm.watch.replay import replay

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
L, D = 4, 3
X = jnp.linspace(0.5, 1.5, 2 * D, dtype=jnp.float32).reshape(2, D)
WS = jnp.stack([jnp.eye(D, dtype=jnp.float32)] * L)
ZERO_AT_1 = jnp.array([1.0, 0.0, 1.0, 1.0], jnp.float32)


def line_of(mark):
    """The line of this file that ends with the comment `# plant: mark`."""
    (found,) = [n for n, line in enumerate(LINES, 1) if line.endswith(f"# plant: {mark}")]
    return found


def mesh(*sizes, names=("data", "tensor")):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Explicit,) * len(sizes))


# ---- planted sites -----------------------------------------------------------------------------------------------


def in_half(x, w):
    h = (x @ w).astype(jnp.float16)  # plant: float16
    return x + jnp.tanh(h).astype(jnp.float32), None


def half_precision():
    @jax.jit
    def model(x, ws):
        return jax.lax.scan(jax.checkpoint(in_half), x, ws)[0].sum()

    return replay(model, X, WS.at[2].multiply(1e6), layer_scan="model")


def of_zero(x):
    return jnp.log(x - x)  # plant: log


def while_and_cond():
    def model(x):
        def body(carry):
            return carry[0] + 1, jax.lax.cond(carry[0] == 3, of_zero, jnp.sin, carry[1])

        return jax.lax.while_loop(lambda carry: carry[0] < 5, body, (0, x))[1]

    return replay(jax.jit(model), X)


@jax.custom_vjp
def gated(x, gate):
    return x * gate


def gated_forward(x, gate):
    return x / gate, gate  # plant: custom_vjp forward


def gated_backward(gate, d_out):
    with jax.named_scope("gated_backward"):
        return d_out / gate, None  # plant: custom_vjp backward


gated.defvjp(gated_forward, gated_backward)


@jax.custom_vjp
def straight(x, gate):
    return x + gate


straight.defvjp(lambda x, gate: (x + gate, gate), gated_backward)


def over_layers(rule, remat=lambda step: step):
    """The gradient of a scan over layers that call `rule` with a gate."""

    def model(x, gates):
        return jax.lax.scan(remat(lambda x, gate: (rule(jnp.sin(x), gate), None)), x, gates)[0].sum()

    return replay(jax.jit(jax.grad(model)), X, ZERO_AT_1, layer_scan="model")


def custom_forward():
    return over_layers(gated)


def custom_backward():
    return over_layers(straight, jax.checkpoint)


def gradient_through_where():
    def model(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()  # plant: where

    return replay(jax.grad(model), X.at[0, 1].set(0.0))


def softmax(scores, mask):
    scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))  # plant: softmax
    return weights / weights.sum(axis=-1, keepdims=True)


def masked_row():
    return replay(jax.jit(softmax), jnp.ones((2, 4)), jnp.array([[True] * 4, [False] * 4]))


def hidden_by_tanh():
    def model(x):
        return jnp.tanh(jnp.exp(x * 100.0))  # plant: tanh

    return replay(jax.jit(model), X)


def reciprocal(x):
    return 1.0 / x  # plant: shard_map


def in_shard_map():
    with jax.set_mesh(mesh(2, 4)):
        mapped = jax.shard_map(reciprocal, in_specs=P("data", "tensor"), out_specs=P("data", "tensor"))
        return replay(jax.jit(mapped), jax.device_put(jnp.ones((2, 4)).at[1, 2].set(0.0), P("data", "tensor")))


def shard_map_backward():
    def local(x):
        y = straight(jnp.sin(x), jnp.where(jax.lax.axis_index("tensor") == 1, 0.0, 1.0))
        return jax.lax.psum(y.sum(), ("data", "tensor"))

    with jax.set_mesh(mesh(2, 2)):
        mapped = jax.shard_map(local, in_specs=P("data", "tensor"), out_specs=P())
        return replay(jax.jit(jax.grad(mapped)), jax.device_put(jnp.ones((2, 4)), P("data", "tensor")))


def summed(x):
    return jax.lax.psum(x * 3e38, "data")  # plant: psum


def sum_over_shards():
    with jax.set_mesh(mesh(2, 1)):
        mapped = jax.shard_map(summed, in_specs=P("data"), out_specs=P())
        return replay(jax.jit(mapped), jax.device_put(jnp.ones(2), P("data")))


def moments(g, v):
    return g / jnp.sqrt(v)  # plant: optimizer


def optimizer():
    def update(grads, state):
        return jax.tree.map(moments, grads, state)

    ones = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    return replay(jax.jit(update), ones, {"a": jnp.ones(3), "b": jnp.ones((2, 2)).at[1, 0].set(0.0)})


def unrolled():
    def model(x, gates):
        for index in range(L):
            with jax.named_scope(f"layer_{index}"):
                x = x / gates[index]  # plant: unrolled
        return x

    return replay(jax.jit(model), X, ZERO_AT_1)


def nested_scans():
    def model(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.log(x * w), None), x + 2.0, ws)[0].sum()  # plant: nested

    def step(batches, ws):
        def add(total, x):
            return jax.tree.map(jnp.add, total, jax.grad(model, argnums=1)(x, ws)), None

        return jax.lax.scan(add, jnp.zeros_like(ws), batches)[0]

    batches = jnp.stack([jnp.full((2,), 1000.0), jnp.full((2,), -2.0)])
    return replay(jax.jit(step), batches, jnp.ones((2,)), layer_scan="model")


def recomputed():
    def layer(x, w):
        return jnp.where(w > 0, jnp.cbrt(x * w) + 1.0, x), None  # plant: remat

    def model(x, ws):
        return jax.lax.scan(jax.checkpoint(layer), x, ws)[0].sum()

    return replay(jax.jit(jax.grad(model)), X, ZERO_AT_1, layer_scan="model")


SITES = {  # the function that plants; then primitive, kind, mark, layer, direction, whether it reached the results
    half_precision: ("convert_element_type", "inf", "float16", 2, "forward", False),
    while_and_cond: ("log", "inf", "log", None, "forward", True),
    custom_forward: ("div", "inf", "custom_vjp forward", 1, "forward", True),
    custom_backward: ("div", "inf", "custom_vjp backward", 1, "backward", True),
    gradient_through_where: ("div", "inf", "where", None, "forward", True),
    masked_row: ("sub", "nan", "softmax", None, "forward", True),
    hidden_by_tanh: ("exp", "inf", "tanh", None, "forward", False),
    in_shard_map: ("div", "inf", "shard_map", None, "forward", True),
    shard_map_backward: ("div", "inf", "custom_vjp backward", None, "backward", True),
    sum_over_shards: ("psum_invariant", "inf", "psum", None, "forward", True),
    optimizer: ("div", "inf", "optimizer", None, "forward", True),
    unrolled: ("div", "inf", "unrolled", 1, "forward", True),
    nested_scans: ("log", "inf", "nested", 0, "forward", True),
    recomputed: ("integer_pow", "inf", "remat", 1, "backward", True),
}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_a_planted_equation_is_named(site):
    primitive, kind, mark, layer, direction, reached = SITES[site]
    found = site().origin
    assert (found.primitive, found.kind) == (primitive, kind)
    assert (Path(found.file), found.line) == (Path(__file__), line_of(mark))
    assert (found.layer, found.direction, found.reached) == (layer, direction, reached)


def test_loops_and_shards_are_told():
    assert [(loop.kind, loop.position, loop.length, loop.function) for loop in nested_scans().origin.loops] == [
        ("scan", 1, 2, "step"),
        ("scan", 0, 2, "model"),
    ]
    assert [(loop.kind, loop.position, loop.length) for loop in while_and_cond().origin.loops] == [("while", 3, None)]
    assert in_shard_map().origin.shard == {"data": 1, "tensor": 2}
    assert shard_map_backward().origin.shard == {"data": 0, "tensor": 1}
    assert custom_backward().origin.scope.endswith("gated_backward")
    assert recomputed().origin.again
    assert not custom_backward().origin.again


def test_ranges_and_the_place_of_the_first_element_are_told():
    found = in_shard_map().origin
    assert (found.at, found.outputs[0].inf, found.outputs[0].shape) == ((0, 0), 1, (1, 1))
    found = half_precision().origin
    assert found.inputs[0].high > 65504
    assert (found.inputs[0].dtype, found.outputs[0].dtype, found.outputs[0].inf) == ("float32", "float16", 6)


def test_the_birth_of_a_nan_is_told_apart_from_that_of_an_infinity():
    def model(x):
        y = jnp.exp(x)  # plant: infinity
        return y - y  # plant: difference

    found = replay(model, jnp.array([1.0, 1000.0]))
    assert [(o.primitive, o.kind, o.line, o.reached) for o in found.origins] == [
        ("exp", "inf", line_of("infinity"), True),
        ("sub", "nan", line_of("difference"), True),
    ]
    assert found.nan == found.origins[1]
    assert found.results == ("result",)


def test_what_something_swallows_comes_after_what_reaches_the_results():
    def model(x):
        hidden = jnp.where(x > 0, jnp.log(x), 0.0)
        return hidden + jnp.sqrt(x - 2.0)  # plant: after

    found = replay(model, jnp.array([0.0, 1.0]))
    assert (found.first.primitive, found.first.reached) == ("log", False)
    assert (found.origin.primitive, found.origin.line) == ("sqrt", line_of("after"))


def test_an_overflow_beside_a_mask_is_seen():
    def model(x, mask):
        return jnp.exp(jnp.where(mask, x, -jnp.inf) * 2.0)

    found = replay(model, jnp.array([1.0, 300.0]), jnp.array([False, True]))
    assert [(origin.primitive, origin.at) for origin in found.origins] == [("exp", (1,))]


def test_arguments_that_are_not_finite_are_named():
    def step(state, batch):
        return state["w"] @ batch

    found = replay(jax.jit(step), {"b": jnp.ones(2), "w": jnp.ones((2, 2)).at[0, 1].set(jnp.nan)}, jnp.ones(2))
    assert [(argument.path, argument.values.nan) for argument in found.arguments] == [("state/w", 1)]
    assert (found.origin, found.results) == (None, ("result",))
    assert "state/w" in found.words()


# ---- clean programs ----------------------------------------------------------------------------------------------


def masked_attention(q, k):
    mask = jnp.tril(jnp.ones((5, 5), bool))

    def layer(x, _):
        return softmax(x @ k.T, mask) @ x, jnp.full((5,), -jnp.inf)

    return jax.nn.logsumexp(jnp.where(mask, jax.lax.scan(layer, q, None, length=2)[0] @ q.T, -jnp.inf), axis=-1).sum()


def test_masks_are_no_origins():
    q = jax.random.normal(jax.random.key(0), (5, 5))
    found = replay(jax.jit(jax.value_and_grad(masked_attention)), q, q)
    assert (found.origins, found.results, found.arguments) == ((), (), ())
    assert found.words().startswith("not reproduced: all values of ")
    assert found.words(sought=False).startswith("all values of ")


def test_a_replay_can_be_read_and_kept():
    found = replay(jax.jit(softmax), jnp.ones((2, 4)), jnp.array([[True] * 4, [False] * 4]))
    text = json.loads(json.dumps(found.as_json()))
    assert text["origins"][0]["line"] == line_of("softmax")
    assert text["origins"][0]["outputs"][0]["nan"] == 4
    words = half_precision().words()
    assert max(map(len, words.splitlines())) <= 80
    assert "convert_element_type made inf (forward, layer 2)" in words
    assert "float16[2,3] none finite, 6 inf" in words


def test_arrays_that_are_written_to_are_refused():
    def model(x):
        reference = jax.new_ref(x)
        reference[...] = 2.0 * x
        return reference[...]

    with pytest.raises(NotImplementedError, match="mutable array"):
        replay(jax.jit(model), X)


# ---- the interpreter gives what jax gives ------------------------------------------------------------------------


def interpreted(function, *args):
    """The results of a function, those of its program run step by step, as NumPy arrays, and the origins that were found."""
    jaxpr, _ = traced(jax.jit(function), *args)
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    expected = [
        np.asarray(leaf) for leaf in jax.tree.leaves(compiled(*args)) if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    ]
    with without_mesh():
        values = [Value.of([on_one_device(leaf)]) for leaf in jax.tree.leaves(args)]
        run = Interpreter(None)
        found = [value.shards[0] for value in run.program(program_of(jaxpr), values, Where((), [{}], {}))]
    return run.origins, expected, [np.asarray(array) for array in found if not jnp.issubdtype(array.dtype, jax.dtypes.extended)]


def collectives(x):
    both, one = ("data", "tensor"), "tensor"
    index = jax.lax.axis_index(both)
    shifted = jax.lax.ppermute(x, one, [(0, 1), (1, 3), (3, 0)])
    return (
        jax.lax.psum(x, both) + index,
        jax.lax.pmax(x, one) - jax.lax.pmin(x, "data"),
        jax.lax.all_gather(x, one, axis=1) * shifted[:, None],
        jax.lax.all_gather(x, both, axis=0, tiled=True) * index,
        jax.lax.psum_scatter(jnp.tile(x, (1, 4)), one, scatter_dimension=1, tiled=True),
        jax.lax.psum_scatter(x, one, scatter_dimension=0),
        jax.lax.all_to_all(x, one, split_axis=0, concat_axis=1, tiled=True),
        jax.lax.all_to_all(x, one, split_axis=0, concat_axis=1),
        jax.lax.while_loop(lambda c: c[0] < index, lambda c: (c[0] + 1, c[1] * 2.0), (jnp.int32(0), x))[1],
        jax.lax.cond(index > 2, jnp.sin, lambda v: v * 3.0, x),
    )


def test_collectives_and_diverging_shards():
    with jax.set_mesh(mesh(2, 4)):
        x = jax.device_put(jnp.arange(8 * 12.0).reshape(8, 12) / 7.0, P("data", "tensor"))

        def stacked(x):
            return tuple(made[None] for made in collectives(x))

        mapped = jax.shard_map(stacked, in_specs=P("data", "tensor"), out_specs=P(("data", "tensor")), check_vma=False)
        for expected, found in zip(*interpreted(mapped, x)[1:], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_loops_branches_and_keys():
    def model(x, key):
        def step(carry, scanned):
            key, weight = scanned
            carry = jax.lax.switch(jnp.int32(weight * 3), [jnp.sin, jnp.cos, jnp.tanh], carry)
            return carry + jax.random.normal(key, carry.shape), (carry.sum(), key)

        last, (sums, keys) = jax.lax.scan(step, x, (jax.random.split(key, 5), jnp.linspace(0.0, 1.0, 5)), reverse=True)
        nothing = jax.lax.scan(lambda c, _: (c, c), x, None, length=0)[1]
        return last, sums, keys, nothing, jax.lax.fori_loop(0, 3, lambda i, c: c * i + 1.0, x)

    _, expected, found = interpreted(model, X, jax.random.key(0))
    assert [array.shape for array in found] == [array.shape for array in expected]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)


# ---- the training step -------------------------------------------------------------------------------------------

MODEL = ModelConfig(
    d_model=8, n_layers=3, n_heads=2, n_kv_heads=2, context_length=8, vocab_size=20, vocab_multiple=8, d_ff=16, head_dim=4
)
MESHES = {
    "single": MeshConfig(),
    "dp": MeshConfig(data=2, rules="dp"),
    "fsdp": MeshConfig(fsdp=2, rules="fsdp"),
    "tp": MeshConfig(tensor=2, rules="tp"),
    "fsdp_tp": MeshConfig(fsdp=2, tensor=2, rules="fsdp_tp"),
    "context": MeshConfig(context=2, rules="dp"),
    "all": MeshConfig(fsdp=2, tensor=2, context=2, rules="fsdp_tp"),
}


def packed_batch():
    ids = np.random.default_rng(0).integers(0, 20, (2, 9), dtype=np.int32)
    t = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    return Batch(ids[:, :-1], ids[:, 1:], t < 7, np.where(t < 5, 1, 2).astype(np.int32), np.where(t < 5, t, t - 5))


def on(mesh_name, *, params=lambda tree: tree, run=replay, **train):
    """`run` on a training step whose parameters were changed."""
    cfg = RunConfig(
        model=MODEL,
        optim=OptimConfig(warmup_steps=1),
        train=TrainConfig(**{"steps": 10, "batch_size": 2, "precision": "float32", "remat": "block", **train}),
        mesh=MESHES[mesh_name],
    )
    laid_out = make_mesh(cfg.mesh)
    with jax.set_mesh(laid_out):
        state = initial_state(cfg, laid_out)
        state = dataclasses.replace(state, params=params(state.params))
        return run(_train_step, state, put_batch(packed_batch(), cfg, laid_out))


def times(layer, factor, name):
    """The parameters with one layer's `name` multiplied."""

    def change(params):
        one = jnp.ones(MODEL.n_layers).at[layer].set(factor)
        leaf = getattr(params.blocks, name)
        changed = leaf * one.reshape(-1, *(1,) * (leaf.ndim - 1))
        return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **{name: changed}))

    return change


def overflowing_norm(x, gain, *, eps):
    """RMSNorm that overflows where the gain is large."""
    huge = jnp.where(gain.max() > 5.0, 1e38, 1.0)
    return rms_norm(x, gain, eps=eps) * huge * huge  # plant: rms_norm


@jax.custom_vjp
def spoiled(x, gain):
    return x


def spoiled_backward(gain, d_out):
    with jax.named_scope("spoiled"):
        huge = jnp.where(gain.max() > 5.0, 1e38, 1.0)
        return d_out * huge * huge, None  # plant: spoiled


spoiled.defvjp(lambda x, gain: (x, gain), spoiled_backward)


@pytest.mark.parametrize("mesh_name", ["single", pytest.param("fsdp_tp", marks=pytest.mark.slow)])
def test_an_overflow_in_the_forward_pass_of_a_step_is_named(mesh_name, monkeypatch):
    monkeypatch.setattr(transformer, "rms_norm", overflowing_norm)
    found = on(mesh_name, params=times(1, 10.0, "attn_norm"), run=lambda *a: replay(*a, layer_scan="hidden")).origin
    assert (found.primitive, found.kind, found.line) == ("mul", "inf", line_of("rms_norm"))
    assert (found.layer, found.direction, found.scope, found.reached) == (1, "forward", "attention", True)


@pytest.mark.parametrize("mesh_name", ["fsdp_tp", pytest.param("single", marks=pytest.mark.slow)])
def test_an_overflow_in_the_backward_pass_of_a_step_is_named(mesh_name, monkeypatch):
    monkeypatch.setattr(transformer, "rms_norm", lambda x, gain, *, eps: spoiled(rms_norm(x, gain, eps=eps), gain))
    found = on(mesh_name, params=times(2, 10.0, "mlp_norm"), run=lambda *a: replay(*a, layer_scan="hidden")).origin
    assert (found.primitive, found.kind, found.line) == ("mul", "inf", line_of("spoiled"))
    assert (found.layer, found.direction, found.scope, found.reached) == (2, "backward", "feed_forward/spoiled", True)


def test_a_weight_that_is_too_large_is_named_where_it_is_read():
    found = on("single", params=times(1, 1e38, "w_up"), run=lambda *a: replay(*a, layer_scan="hidden"))
    assert found.arguments == ()
    assert (found.origin.layer, found.origin.direction) == (1, "forward")
    assert found.origin.scope.startswith("feed_forward")
    assert "jaxlm" in found.origin.file


def test_a_learning_rate_out_of_bounds_is_named_in_the_optimizer():
    def run(step, state, batch):
        cfg = dataclasses.replace(state.cfg, optim=dataclasses.replace(state.cfg.optim, lr=1e38, weight_decay=1e3))
        return replay(step, dataclasses.replace(state, cfg=cfg), batch, layer_scan="hidden")

    found = on("single", run=run).origin
    assert (found.direction, found.scope.split("/")[0]) == ("forward", "optimizer")


def assert_the_step_of_jax(mesh_name, **train):
    # AdamW moves a weight by the sign of its gradient, which rounding turns where the gradient is next to nothing.
    near = {"rtol": 2e-2, "atol": 5e-3} if "precision" in train else {"rtol": 2e-4, "atol": 1e-5}
    origins, expected, found = on(mesh_name, run=interpreted, **train)
    assert origins == []
    assert len(expected) == len(found) > 30
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, **near)


def test_a_clean_step_gives_its_own_numbers_and_no_origin():
    assert_the_step_of_jax("all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_name", "options"),
    [
        ("context", {"grad_accum": 2}),
        ("context", {"remat": "none"}),
        ("context", {"precision": "bfloat16"}),
        ("fsdp_tp", {"precision": "float16"}),
    ],
    ids=str,
)
def test_every_mesh_gives_its_own_numbers_and_no_origin(mesh_name, options):
    assert_the_step_of_jax(mesh_name, **options)
