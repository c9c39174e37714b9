"""The training step: accumulation, gating, dropout, loss scale, the two-argument form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.model import Mask, hidden
from jaxlm.train import TrainState, apply_gradients, compute_gradients, train_step
from jaxlm.train.step import score_step

MODEL = schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=16, vocab_size=50, vocab_multiple=64)


def config(model=MODEL, **train):
    return schema.RunConfig(
        model=model,
        optim=schema.OptimConfig(lr=1e-2, warmup_steps=1),
        train=schema.TrainConfig(**{"steps": 100, "batch_size": 4, **train}),
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (4, 17), dtype=np.int32)
    t = np.arange(16)
    segments = np.where(t < 7, 1, 2).astype(np.int32)
    positions = np.where(t < 7, t, t - 7).astype(np.int32)
    mask = np.broadcast_to((t != 6), (4, 16)) & (t < np.array([16, 9, 3, 12])[:, None])
    return Batch(ids[:, :-1], ids[:, 1:], mask, *(np.tile(x, (4, 1)) for x in (segments, positions)))


def gradients_of(cfg, batch):
    key = jax.random.key(0)
    params = TrainState.create(cfg).params
    return jax.jit(lambda p, b: compute_gradients(p, b, cfg, loss_scale=jnp.float32(1), key=key))(params, batch)


def test_micro_batches_of_ragged_masks_equal_the_whole_batch(batch):
    whole = gradients_of(config(z_loss=1e-3), batch)
    for accum in (2, 4):
        parts = gradients_of(config(grad_accum=accum, z_loss=1e-3), batch)
        assert float(parts.sums.count) == float(whole.sums.count) == batch.loss_mask.sum()
        np.testing.assert_allclose(parts.sums.nll, whole.sums.nll, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts.grads, whole.grads)


def test_blocks_of_the_loss_change_neither_gradients_nor_scores(batch):
    whole, blocks = config(z_loss=1e-3), config(z_loss=1e-3, grad_accum=2, loss_chunk=5)
    expected, found = gradients_of(whole, batch), gradients_of(blocks, batch)
    np.testing.assert_allclose(found.sums.nll, expected.sums.nll, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.grads, expected.grads)
    params = TrainState.create(whole).params
    scores = [score_step(params, batch, cfg) for cfg in (whole, blocks)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores[0].sum(), expected.sums.nll, rtol=1e-6)
    assert (np.asarray(scores[0])[~batch.loss_mask] == 0.0).all()


def test_the_gradient_is_that_of_the_mean_over_labels(batch):
    cfg = config()
    grads = gradients_of(cfg, batch).grads
    params = TrainState.create(cfg).params

    def mean_loss(scale):
        moved = dataclasses.replace(params, final_norm=params.final_norm * scale)
        nll = score_step(moved, batch, cfg)
        return float(np.asarray(nll, np.float64).sum() / batch.loss_mask.sum())

    numeric = (mean_loss(1.01) - mean_loss(0.99)) / 0.02
    assert float((grads.final_norm * params.final_norm).sum()) == pytest.approx(numeric, rel=1e-2)


def test_two_arguments_make_progress_and_donate_the_state(batch):
    state = TrainState.create(config())
    losses = []
    for _ in range(15):
        before = state.params.embed
        state, telemetry = train_step(state, batch)
        losses.append(float(telemetry.loss))
    assert before.is_deleted()
    assert int(state.step) == 15
    assert losses[-1] < losses[0] - 0.5
    assert telemetry.leaf_grad_norms["blocks/wq"].shape == (2,)
    assert telemetry.activations.attn.rms.shape == (2,)


def test_equal_state_and_batch_give_equal_bits(batch):
    outcomes = [train_step(TrainState.create(config()), batch) for _ in range(2)]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *[jax.tree.leaves(o[0].params) for o in outcomes])


def test_a_nan_gradient_changes_nothing_and_the_next_step_goes_on(batch):
    cfg = config()
    state, good = TrainState.create(cfg), gradients_of(cfg, batch)
    bad = good._replace(grads=dataclasses.replace(good.grads, embed=good.grads.embed.at[0, 0].set(jnp.nan)))
    apply = jax.jit(apply_gradients)
    held, telemetry = apply(state, bad)
    assert not telemetry.finite
    assert int(telemetry.skipped) == 1
    assert int(held.step) == 1
    for a, b in zip(
        jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves((held.params, held.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    after, telemetry = apply(held, good)
    assert telemetry.finite
    assert int(telemetry.skipped) == 0
    assert (np.asarray(after.params.embed) != np.asarray(held.params.embed)).any()
    assert int(after.opt_state[-1].count) == 1


def test_an_update_out_of_all_bounds_is_not_added(batch):
    cfg = config()
    state = TrainState.create(dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, lr=1e38)))
    held, telemetry = jax.jit(apply_gradients)(state, gradients_of(cfg, batch))
    assert not telemetry.finite
    assert float(telemetry.update_norm) == 0
    jax.tree.map(np.testing.assert_array_equal, held.params, state.params)


def test_a_batch_without_labels_is_skipped_and_not_a_loss_of_zero(batch):
    state, telemetry = train_step(TrainState.create(config()), batch._replace(loss_mask=np.zeros_like(batch.loss_mask)))
    assert not telemetry.finite
    assert np.isnan(float(telemetry.loss))
    assert np.isfinite(np.asarray(state.params.embed)).all()


def test_dropout_differs_from_step_to_step_and_is_off_when_scoring(batch):
    cfg = config(dataclasses.replace(MODEL, dropout=0.5))
    state = TrainState.create(cfg)
    frozen = state.params
    keys = [jax.random.fold_in(state.key, step) for step in (0, 1, 0)]
    grads = jax.jit(lambda p, b, k: compute_gradients(p, b, cfg, loss_scale=jnp.float32(1), key=k).sums.nll)
    first, second, again = (float(grads(frozen, batch, key)) for key in keys)
    assert first != second
    assert first == again
    np.testing.assert_array_equal(score_step(frozen, batch, cfg), score_step(frozen, batch, cfg))


def test_float16_scales_the_loss_and_recovers_from_overflow(batch):
    cfg = config(precision="float16")
    state = TrainState.create(cfg)
    assert float(state.loss_scale.scale) == 2.0**15
    state = dataclasses.replace(state, loss_scale=dataclasses.replace(state.loss_scale, scale=jnp.float32(2.0**40)))
    finite = []
    for _ in range(40):
        state, telemetry = train_step(state, batch)
        finite.append(bool(telemetry.finite))
    assert not finite[0]
    assert finite[-1]
    assert float(telemetry.loss) < 3.5


def test_bfloat16_keeps_parameters_and_loss_in_float32(batch):
    state, telemetry = train_step(TrainState.create(config(precision="bfloat16")), batch)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert telemetry.loss.dtype == jnp.float32
    wide = float(train_step(TrainState.create(config()), batch)[1].loss)
    assert float(telemetry.loss) == pytest.approx(wide, rel=1e-2)


@pytest.mark.parametrize("changes", [{}, {"grad_accum": 2}, {"precision": "bfloat16", "remat": "block"}], ids=str)
def test_telemetry_changes_no_bit_of_what_is_trained(batch, changes):
    """Of a step whose telemetry nobody reads the compiler leaves it out."""
    cfg = config(**changes)
    bare = jax.jit(lambda state, batch: train_step(state, batch)[0])
    states = [TrainState.create(cfg) for _ in range(2)]
    for _ in range(4):
        states = [train_step(states[0], batch)[0], bare(states[1], batch)]
    watched, unwatched = (jax.tree.leaves((state.params, state.opt_state)) for state in states)
    for a, b in zip(watched, unwatched, strict=True):
        np.testing.assert_array_equal(a, b)


def mean_cosine(params, cfg, batch):
    """Of the last activations of two supervised positions, over all pairs."""
    mask = Mask.packed(batch.segments, batch.positions)
    x = np.asarray(hidden(params, batch.tokens, cfg.model, mask)[0], np.float64)[np.asarray(batch.loss_mask)]
    units = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return (units @ units.T)[~np.eye(len(units), dtype=bool)].mean()


def test_what_the_telemetry_says_of_a_step(batch):
    """Spread of the loss, still rows, clipping, norms: each against NumPy, from gradients and parameters themselves."""
    cfg = config(dataclasses.replace(MODEL, tie_embeddings=False))
    state = TrainState.create(cfg)
    nll = np.asarray(score_step(state.params, batch, cfg), np.float64)[batch.loss_mask]
    gradient = np.asarray(gradients_of(cfg, batch).grads.embed)[:50]
    before = jax.tree.map(np.asarray, state.params)
    alike = mean_cosine(state.params, cfg, batch)
    after, telemetry = train_step(state, batch)
    np.testing.assert_allclose(telemetry.loss_spread, nll.std(), rtol=1e-3)
    still = 1 - gradient.any(axis=1).mean()
    assert 0 < still < 1
    np.testing.assert_allclose(telemetry.embed_rows_still, still, rtol=1e-6)
    np.testing.assert_allclose(telemetry.similarity, alike, rtol=1e-3)
    moved = np.asarray(after.params.blocks.wq, np.float64) - before.blocks.wq
    np.testing.assert_allclose(telemetry.leaf_update_norms["blocks/wq"], np.sqrt(np.square(moved).sum((1, 2, 3))), rtol=1e-4)
    of_embed = np.sqrt(np.square(np.asarray(after.params.embed, np.float64)).sum())
    np.testing.assert_allclose(telemetry.leaf_param_norms["embed"], of_embed, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "clipped"), [(1e-3, True), (1e3, False), (0.0, False)])
def test_a_step_says_whether_it_was_clipped(batch, limit, clipped):
    cfg = config()
    state = TrainState.create(dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, clip_norm=limit)))
    assert bool(jax.jit(apply_gradients)(state, gradients_of(cfg, batch))[1].clipped) is clipped
