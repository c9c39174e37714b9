"""float16 with dynamic loss scaling, beside float32 and beside float16 without; what is accumulated, under every policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.model import POLICIES, LossScale
from jaxlm.model.spec import named_leaves
from jaxlm.train import TrainState, compute_gradients, train_step
from jaxlm.train.state import policy
from jaxlm.watch.detect import expected_of

# Without norms and with small weights the gradient of a weight is a product of small numbers; the mean over 512 positions
# makes it smaller still. The least number of float16 is 6e-8.
SMALL = schema.ModelConfig(
    d_model=16, n_layers=2, n_heads=2, context_length=32, vocab_size=50, vocab_multiple=64,
    norm="none", tie_embeddings=False, init_std=0.01,
)  # fmt: skip
ALL_ZERO = ("blocks/wk", "blocks/wq")  # 3e-10 in float32
NEARLY_ALL_ZERO = ("blocks/w_gate", "blocks/w_up")  # 3e-8
ROWS = 16


def config(precision, model=SMALL, **train):
    return schema.RunConfig(
        model=model,
        optim=schema.OptimConfig(lr=1e-3, warmup_steps=0, weight_decay=0.0, eps=1e-16, clip_norm=0.0, schedule="constant"),
        train=schema.TrainConfig(**{"steps": 100, "batch_size": ROWS, "precision": precision, **train}),
    )


@pytest.fixture(scope="module")
def batch():
    """Rows that count on, so that a few steps learn something, with ragged masks."""
    t = np.arange(33, dtype=np.int32)
    ids = (t + np.arange(ROWS, dtype=np.int32)[:, None] * 3) % 50
    ones = np.ones((ROWS, 32), np.int32)
    mask = t[None, :32] < np.random.default_rng(0).integers(4, 33, (ROWS, 1))
    return Batch(ids[:, :-1], ids[:, 1:], mask, ones, np.tile(t[:32], (ROWS, 1)))


def scaled(state, scale, good_steps=0):
    return dataclasses.replace(state, loss_scale=LossScale(jnp.float32(scale), jnp.int32(good_steps)))


# ---- float16 with and without its scale --------------------------------------------------------------------------


def trained(precision, batch, steps, scale=None):
    """Losses, first gradients (from the first moment, which is their tenth) and moves of the parameters, by name."""
    state = TrainState.create(config(precision))
    state = state if scale is None else scaled(state, scale)
    start, losses, first = {n: np.asarray(x) for n, x in named_leaves(state.params).items()}, [], {}
    for _ in range(steps):
        state, telemetry = train_step(state, batch)
        assert telemetry.finite
        losses.append(float(telemetry.loss))
        if not first:
            moments = {name.partition("mu/")[2]: np.asarray(x) for name, x in named_leaves(state.opt_state).items()}
            first = {name: moments[name] * 10 for name in start}
    return losses, first, {n: np.asarray(x) - start[n] for n, x in named_leaves(state.params).items()}


@pytest.fixture(scope="module")
def runs(batch):
    """Six steps in float32, in float16 with its scale, and in float16 with a scale of one."""
    return trained("float32", batch, 6), trained("float16", batch, 6), trained("float16", batch, 6, scale=1.0)


def test_gradients_that_are_exactly_zero_in_float16_are_those_of_float32_once_the_loss_is_scaled(runs):
    exact, saved, bare = (first for _, first, _ in runs)
    for name, share in (*((name, 1.0) for name in ALL_ZERO), *((name, 0.9) for name in NEARLY_ALL_ZERO)):
        assert (exact[name] != 0).all(), name
        assert np.mean(bare[name] == 0) >= share, name
    for name, grad in exact.items():
        np.testing.assert_allclose(saved[name], grad, rtol=0, atol=1e-2 * np.abs(grad).max(), err_msg=name)


def test_training_in_scaled_float16_tracks_float32_and_unscaled_float16_does_not_move_what_underflows(runs):
    (exact, _, moved), (tracked, _, saved), (_, _, bare) = runs
    assert exact[-1] < exact[0]
    np.testing.assert_allclose(tracked, exact, rtol=1e-3)
    for name in ALL_ZERO:
        assert np.linalg.norm(saved[name] - moved[name]) < 0.2 * np.linalg.norm(moved[name]), name
        assert (bare[name] == 0).all(), name


def test_the_scale_halves_at_an_overflow_doubles_after_its_period_and_stays_at_its_floor(batch):
    state = scaled(TrainState.create(config("float16")), 2.0**60, good_steps=7)
    state, telemetry = train_step(state, batch)
    assert (float(telemetry.loss_scale), bool(telemetry.finite)) == (2.0**60, False)
    assert (float(state.loss_scale.scale), int(state.loss_scale.good_steps)) == (2.0**59, 0)
    state, telemetry = train_step(scaled(state, 2.0**10, LossScale.PERIOD - 1), batch)
    assert (float(telemetry.loss_scale), bool(telemetry.finite)) == (2.0**10, True)
    assert (float(state.loss_scale.scale), int(state.loss_scale.good_steps)) == (2.0**11, 0)
    broken = dataclasses.replace(state.params, head=state.params.head.at[0, 0].set(jnp.nan))
    for _ in range(2):
        state, telemetry = train_step(scaled(dataclasses.replace(state, params=broken), LossScale.FLOOR), batch)
        broken = state.params
        assert not telemetry.finite
        assert float(state.loss_scale.scale) == LossScale.FLOOR


def test_the_scale_is_restored_bit_by_bit_and_the_next_step_is_the_same(batch, tmp_path):
    cfg = config("float16")
    state, _ = train_step(scaled(TrainState.create(cfg), 2.0**13, good_steps=41), batch)
    with CheckpointStore(tmp_path) as store:
        store.save(state, 1, facts={}, parents={})
        store.wait()
        back, _ = store.restore(jax.eval_shape(lambda: TrainState.create(cfg)))
    assert (float(back.loss_scale.scale), int(back.loss_scale.good_steps)) == (2.0**13, 42)
    after, again = train_step(state, batch), train_step(back, batch)
    for name, leaf in named_leaves((after[0].params, after[0].opt_state, after[0].loss_scale, after[1])).items():
        other = named_leaves((again[0].params, again[0].opt_state, again[0].loss_scale, again[1]))[name]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other), err_msg=name)


# ---- accumulation ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [pytest.param("float32", 1e-5, marks=pytest.mark.slow), ("bfloat16", 2e-2)],  # float32 by default: test_step.py
)
def test_ragged_micro_batches_accumulate_to_the_gradient_of_the_whole_batch(batch, precision, tolerance):
    """In bfloat16 the rounding of activations depends on nothing but the row; what differs is the sum over rows."""

    def gradients(accum):
        cfg = config(precision, dataclasses.replace(SMALL, norm="pre", init_std=0.1), grad_accum=accum)
        made = jax.jit(lambda p, b: compute_gradients(p, b, cfg, loss_scale=jnp.float32(1), key=jax.random.key(0)).grads)
        return {name: np.asarray(grad) for name, grad in named_leaves(made(TrainState.create(cfg).params, batch)).items()}

    assert len({int(batch.loss_mask[a::4].sum()) for a in range(4)}) > 1
    whole, parts = gradients(1), gradients(4)
    for name, grad in whole.items():
        assert np.linalg.norm(parts[name] - grad) <= tolerance * np.linalg.norm(grad), name


def scans(jaxpr):
    """Every scan of a program, those of its inner programs included, outermost first."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from scans(getattr(inner, "jaxpr", inner))


def carries(equation):
    """Shape and dtype of what a scan carries from turn to turn."""
    if "num_consts" in equation.params:
        consts, carried = equation.params["num_consts"], equation.params["num_carry"]
    else:  # jax 0.12: trees of constants, carries and what is scanned
        consts, carried = (len(list(part)) for part in equation.params["ft_in"].unpack()[:2])
    return [(v.aval.shape, str(v.aval.dtype)) for v in equation.invars[consts : consts + carried]]


def narrow_sums(precision, model, **train):
    """What the scans of the gradient carry in less than float32 though it has the shape of a parameter or is a single sum."""
    cfg = config(precision, model, grad_accum=4, **train)
    params = jax.eval_shape(lambda: TrainState.create(cfg).params)
    rows = jax.ShapeDtypeStruct((ROWS, 32), jnp.int32)
    abstract = Batch(rows, rows, jax.ShapeDtypeStruct((ROWS, 32), jnp.bool_), rows, rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(lambda p, b, k: compute_gradients(p, b, cfg, loss_scale=jnp.float32(1), key=k), static_argnums=())(
        params, abstract, key
    )
    outer, *inner = list(scans(traced.jaxpr))
    leaves = jax.tree.leaves(params)
    accumulated = [carry for carry in carries(outer) if carry[1] != "int32"]
    assert [shape for shape, _ in accumulated[: len(leaves)]] == [leaf.shape for leaf in leaves]
    # And the checksum of the rows, which is exact.
    assert sorted(carry for carry in accumulated if carry[1] != "float32") == [((), "uint32")]
    shapes = {leaf.shape for leaf in leaves} | {leaf.shape[1:] for leaf in leaves} | {()}
    return [carry for scan in inner for carry in carries(scan) if carry[0] in shapes and carry[1] in ("bfloat16", "float16")]


@pytest.mark.parametrize("precision", POLICIES)
def test_nothing_is_summed_over_turns_of_a_scan_in_less_than_float32(precision):
    model = dataclasses.replace(SMALL, norm="pre", qk_norm=True, attention_bias=True)
    for each in (model, dataclasses.replace(model, tie_embeddings=True)):
        assert narrow_sums(precision, each, loss_chunk=8) == []


def test_a_run_may_leave_the_scale_out_and_nothing_expects_one_then():
    cfg = config("float16", loss_scaling=False)
    assert not policy(cfg).scales_loss
    state = TrainState.create(cfg)
    moved = state.loss_scale.next(jnp.asarray(False), policy(cfg))
    assert float(state.loss_scale.scale) == float(moved.scale) == 1.0
    assert expected_of(cfg).scaled is False
    assert expected_of(config("float16")).scaled is True
    assert policy(config("float32")) == POLICIES["float32"]
