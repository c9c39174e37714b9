"""No mesh changes a number: losses and every gradient on eight devices against one, in every way that a step can be cut."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxlm.config.schema import MeshConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.data import Batch
from jaxlm.model import param_specs
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import make_mesh, processes
from jaxlm.train.state import TrainState, batch_rows, initial_state, put_batch, rules
from jaxlm.train.step import compute_gradients

VOCAB, LENGTH, ROWS = 50, 16, 16
MODEL = ModelConfig(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, context_length=LENGTH, vocab_size=VOCAB, vocab_multiple=64, d_ff=32,
    attention_bias=True, qk_norm=True, tie_embeddings=False,
)  # fmt: skip
MESHES = {
    "single": MeshConfig(),
    "dp": MeshConfig(data=4, rules="dp"),
    "fsdp": MeshConfig(data=2, fsdp=2, rules="fsdp"),
    "tp": MeshConfig(data=2, tensor=4, rules="tp"),  # more shards than key/value heads
    "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp"),
    "context": MeshConfig(data=2, context=4, rules="dp"),
    "all": MeshConfig(fsdp=2, tensor=2, context=2, rules="fsdp_tp"),
}
ACCUMULATIONS, PRECISIONS = (1, 4), ("float32", "bfloat16")
# Two processes of two devices each, so that every mesh lies on both.
TWO_PROCESSES = {
    "dp": MeshConfig(data=4, rules="dp"),
    "fsdp": MeshConfig(fsdp=4, rules="fsdp"),
    "tp": MeshConfig(tensor=4, rules="tp"),
    "fsdp_tp": MeshConfig(fsdp=2, tensor=2, rules="fsdp_tp"),
    "context": MeshConfig(context=4, rules="dp"),
}


def of_two_processes():
    """Names, meshes and options of `config`: every way to cut a step once, the meshes in turn."""
    meshes = itertools.cycle(TWO_PROCESSES.items())
    for (accum, scan, precision), (name, mesh) in zip(
        itertools.product(ACCUMULATIONS, (True, False), PRECISIONS), meshes, strict=False
    ):
        yield f"{name}-{accum}-{scan}-{precision}", mesh, {"grad_accum": accum, "scan": scan, "precision": precision}


def config(mesh, *, scan=True, model=MODEL, **train):
    train = {"steps": 50, "batch_size": ROWS, **train}
    model = dataclasses.replace(model, scan_layers=scan)
    return RunConfig(model=model, optim=OptimConfig(warmup_steps=1), train=TrainConfig(**train), mesh=mesh)


def packed_batch():
    """Two documents a row, ragged loss masks, and every third id used by no token."""
    rng = np.random.default_rng(0)
    ids = (rng.integers(0, VOCAB, (ROWS, LENGTH + 1)) // 3 * 3 + 1).clip(max=VOCAB - 1).astype(np.int32)
    t = np.arange(LENGTH, dtype=np.int32)
    mask = t < rng.integers(3, LENGTH + 1, ROWS)[:, None]
    cut = rng.integers(2, LENGTH - 2, ROWS)[:, None]
    segments = np.where(t < cut, 1, 2).astype(np.int32)
    positions = np.where(t < cut, t, t - cut).astype(np.int32)
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), mask, segments, positions)


BATCH = packed_batch()


def evaluated(cfg, params, batch):
    """The loss, and the gradients by name, as float64 NumPy arrays; and the gradients as they lie."""
    gradient = jax.jit(functools.partial(compute_gradients, cfg=cfg, loss_scale=jnp.float32(1)))
    # Each is compiled for one call: machine code is not worth optimising, and the partitioned program is the same.
    options = {"xla_backend_optimization_level": 0}
    found = gradient.lower(params, batch, key=jax.random.key(0)).compile(options)(params, batch, key=jax.random.key(0))
    leaves = named_leaves(found.grads)
    loss = float(found.sums.nll) / float(found.sums.count)
    return loss, {k: processes.whole(g).astype(np.float64) for k, g in leaves.items()}, leaves


@functools.cache
def on_one_device(precision, accum=1, model=MODEL):
    cfg = config(MESHES["single"], precision=precision, grad_accum=accum, model=model)
    return evaluated(cfg, TrainState.create(cfg).params, BATCH)[:2]


def on(mesh_config, **options):
    cfg = config(mesh_config, **options)
    mesh = make_mesh(cfg.mesh)
    rows = batch_rows(cfg, mesh)  # of several processes each gives its own
    given = BATCH if rows is None else jax.tree.map(lambda array: array[rows], BATCH)
    with jax.set_mesh(mesh):
        loss, grads, leaves = evaluated(cfg, initial_state(cfg, mesh).params, put_batch(given, cfg, mesh, rows=rows))
    for path, spec in named_leaves(param_specs(cfg.model)).items():
        assert leaves[path].sharding.is_equivalent_to(NamedSharding(mesh, rules(cfg).weight(spec.dims)), leaves[path].ndim), (
            path
        )
    return loss, grads


def distance(a, b):
    """Largest relative distance of a leaf: |a - b| / |b|, Euclidean, and the name of the leaf."""
    return max((np.linalg.norm(a[path] - b[path]) / np.linalg.norm(b[path]), path) for path in b)


def assert_parity(mesh_config, precision="float32", model=MODEL, **options):
    assert_equal_to_one_device(*on(mesh_config, precision=precision, model=model, **options), precision, model)


def assert_equal_to_one_device(loss, grads, precision="float32", model=MODEL):
    """The bound of float32 is 1e-5; bfloat16 may be as far from float32 as it is on one device, and half of that more."""
    exact_loss, exact = on_one_device("float32", model=model)
    bound, loss_bound = (1e-5, ""), 1e-5
    if precision != "float32":
        near_loss, near = on_one_device(precision, model=model)
        bound, loss_bound = distance(near, exact), abs(near_loss / exact_loss - 1)
        bound, loss_bound = (1.5 * bound[0], bound[1]), 1.5 * loss_bound + 1e-3
    assert abs(loss / exact_loss - 1) <= loss_bound
    assert set(grads) == set(exact)
    assert distance(grads, exact) <= bound
    unused = np.setdiff1d(np.arange(MODEL.padded_vocab), BATCH.tokens)
    assert len(unused) > VOCAB // 2
    assert not grads["embed"][unused].any(), "rows of the embedding that no token used have a gradient"
    assert all(np.abs(grads["embed"][used]).sum() > 0 for used in np.unique(BATCH.tokens[BATCH.loss_mask]))


@pytest.mark.parametrize("name", [n for n in MESHES if n != "single"])
def test_a_mesh_changes_no_loss_and_no_gradient(name):
    assert_parity(MESHES[name])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
@pytest.mark.parametrize("accum", ACCUMULATIONS)
@pytest.mark.parametrize("name", MESHES)
def test_no_way_to_cut_a_step_changes_its_numbers(name, accum, scan, precision):
    assert_parity(MESHES[name], precision, grad_accum=accum, scan=scan)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "block"])
def test_what_is_computed_again_changes_no_number_on_a_mesh(remat):
    assert_parity(MESHES["all"], remat=remat)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv_heads", "tensor"), [(4, 1, 4), (6, 3, 2), (8, 2, 8), (6, 2, 3), (12, 3, 4)])
def test_key_value_heads_that_the_shards_do_not_divide_are_read_where_they_are_needed(heads, kv_heads, tensor):
    model = dataclasses.replace(MODEL, n_heads=heads, n_kv_heads=kv_heads, head_dim=4, d_ff=48, vocab_multiple=96)
    assert_parity(MeshConfig(tensor=tensor, rules="tp"), model=model)


@pytest.mark.slow
@pytest.mark.parametrize("window", [3, 7])
def test_a_window_over_the_shards_of_a_sequence_is_the_same_window(window):
    assert_parity(MESHES["context"], model=dataclasses.replace(MODEL, window=window, attention_softcap=20.0))


@pytest.mark.slow
def test_one_row_a_micro_batch_is_enough():
    assert_parity(MeshConfig(tensor=2, rules="tp"), grad_accum=ROWS)
