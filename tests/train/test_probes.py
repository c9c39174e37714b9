"""The static probes pass on the code as it is, and each fails on the fault that it is there for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.config import schema
from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.parallel import make_mesh
from jaxlm.train import probes_forward as forward
from jaxlm.train import probes_update as update
from jaxlm.train.probes import Bench, Probe, require, run_probes
from jaxlm.train.state import initial_state


def config(**sections):
    parts = {
        "model": schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=512, vocab_size=50, vocab_multiple=64),
        "optim": schema.OptimConfig(lr=1e-2, warmup_steps=10),
        "train": schema.TrainConfig(steps=50, batch_size=4),
        **sections,
    }
    return schema.RunConfig(**parts)


def real_batch(rows=4, length=512):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 50, (rows, length + 1), dtype=np.int32)
    t = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.ones((rows, length), bool), np.ones_like(t), t)


def bench(cfg=None, batch=None):
    cfg = cfg or config()
    mesh = make_mesh(cfg.mesh)
    params = initial_state(cfg, mesh).params
    return Bench(cfg, mesh, params, real_batch() if batch is None else batch)


CONFIGS = {
    "float32": config(),
    "bfloat16": config(train=schema.TrainConfig(steps=50, batch_size=4, precision="bfloat16", grad_accum=2)),
    "long": config(
        model=schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=32768, vocab_size=50, qk_norm=True)
    ),
    "bare": config(
        model=schema.ModelConfig(
            d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, context_length=64, vocab_size=50, norm="none", pos="none",
            ffn="gelu", tie_embeddings=False, dropout=0.2, window=8,
        ),
        optim=schema.OptimConfig(lr=1e-2, weight_decay=0.0),
        train=schema.TrainConfig(steps=200, batch_size=8, grad_accum=4),
    ),
    "fsdp": config(mesh=schema.MeshConfig(data=2, fsdp=2, rules="fsdp"), train=schema.TrainConfig(steps=50, batch_size=8)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_probe_passes_on_the_code_as_it_is(name):
    cfg = CONFIGS[name]
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        results = list(run_probes(cfg, mesh, initial_state(cfg, mesh).params, real_batch(length=64), fresh=True))
    assert [p for p in results if not p.passed] == []
    assert len(results) == 11


def failed(probe: Probe) -> bool:
    with pytest.raises(ContractError, match=probe.name):
        require(probe, artifact="run")
    return True


# ---- faults in the data --------------------------------------------------------------------------------------------


def test_labels_shifted_by_none_or_two_are_seen():
    batch = real_batch()
    for shift in (0, 2):
        wrong = batch._replace(labels=np.roll(batch.tokens, -shift, axis=1))
        assert failed(forward.labels_shifted_by_one(bench(batch=wrong)))


@pytest.mark.parametrize("bad", [-1, 50, 4000])
def test_ids_out_of_range_are_seen(bad):
    batch = real_batch()
    batch.tokens[1, 5] = bad
    assert failed(forward.ids_in_range(bench(batch=batch)))


def test_a_batch_that_does_not_move_or_repeat_is_seen():
    fixed = real_batch(2, 16)
    calls = iter(range(100))
    assert forward.batch_is_pure(lambda step: real_batch(2, 16)._replace(tokens=np.full((2, 16), step, np.int32)), 3).passed
    assert failed(forward.batch_is_pure(lambda step: fixed, 3))
    assert failed(forward.batch_is_pure(lambda step: fixed._replace(tokens=np.full((2, 16), next(calls), np.int32)), 3))


# ---- faults in the model -------------------------------------------------------------------------------------------


def test_a_mask_that_sees_one_ahead_is_seen(monkeypatch):
    import jaxlm.model.attention as attention

    real = attention.packed

    def leaky(segments, positions, *, window=0):
        ranges = real(segments, positions, window=window)
        return ranges._replace(end_BT=ranges.end_BT + 1)

    monkeypatch.setattr(attention, "packed", leaky)
    assert failed(forward.causality(bench()))


def test_documents_that_see_each_other_are_seen(monkeypatch):
    import jaxlm.model.attention as attention

    real = attention.packed
    monkeypatch.setattr(
        attention, "packed", lambda s, p, *, window=0: real(jnp.minimum(s, 1), jnp.cumsum(jnp.ones_like(s), 1) - 1)
    )
    assert failed(forward.documents_isolated(bench()))


def test_angles_in_bfloat16_are_seen_in_every_precision(monkeypatch):
    import jaxlm.model.transformer as transformer

    real = transformer.rope_angles

    def rounded(positions, width, *, theta):
        return real(jax.lax.reduce_precision(positions.astype(jnp.float32), 8, 7), width, theta=theta)

    monkeypatch.setattr(transformer, "rope_angles", rounded)
    monkeypatch.setattr(forward, "rope_angles", rounded)
    assert failed(forward.rope_shift_invariance(bench()))
    half = config(train=schema.TrainConfig(steps=50, batch_size=4, precision="bfloat16"))
    assert failed(forward.rope_shift_invariance(bench(half)))


def test_positions_rounded_on_their_way_to_the_rotation_are_seen(monkeypatch):
    import jaxlm.model.transformer as transformer

    real = transformer.rope_angles
    monkeypatch.setattr(
        transformer,
        "rope_angles",
        lambda p, w, *, theta: real(jax.lax.reduce_precision(p.astype(jnp.float32), 8, 7), w, theta=theta),
    )
    assert failed(forward.rope_shift_invariance(bench()))


def test_dropout_when_scoring_is_seen(monkeypatch):
    import jaxlm.train.probes as probes

    counter = iter(range(100))
    made = bench()
    honest = made.forward
    monkeypatch.setattr(made, "forward", lambda *a, **k: tuple(x * (1 + 1e-6 * next(counter)) for x in honest(*a, **k)))
    assert probes.Bench is Bench
    assert failed(forward.evaluation_deterministic(made))


def test_weights_that_are_three_times_too_large_are_seen():
    made = bench()
    made.params = dataclasses.replace(made.params, embed=made.params.embed * 60)
    assert failed(forward.initial_loss(made))


# ---- faults in the update ------------------------------------------------------------------------------------------


def test_masked_labels_that_count_are_seen(monkeypatch):
    import jaxlm.train.step as step

    real = step.loss_sums
    monkeypatch.setattr(step, "loss_sums", lambda logits, labels, mask: real(logits, labels, jnp.ones_like(mask)))
    assert failed(update.masked_labels(bench()))


def test_a_mean_of_means_is_seen(monkeypatch):
    import jaxlm.train.step as step

    real = step.loss_sums

    def mean_of_means(logits, labels, mask):
        sums = real(logits, labels, mask)
        return dataclasses.replace(sums, nll=sums.nll / sums.count, z=sums.z / sums.count, count=jnp.ones_like(sums.count))

    monkeypatch.setattr(step, "loss_sums", mean_of_means)
    assert failed(update.accumulation(bench()))


def test_decay_on_everything_and_on_nothing_is_seen(monkeypatch):
    import jaxlm.train.step as step

    for mask in (None, lambda params: jax.tree.map(lambda _: False, params)):
        monkeypatch.setattr(step, "optimizer", lambda cfg, mask=mask: optax.chain(optax.identity(), _adam(mask)))
        assert failed(update.decay_touches_declared(bench()))


def _adam(mask):
    from jaxlm.optim import adamw

    return adamw(1e-2, weight_decay=0.1, mask=mask)


def test_nans_that_are_zeroed_or_let_through_are_seen(monkeypatch):
    import jaxlm.train.step as step

    real = step.apply_gradients

    def zeroing(state, gradients):
        return real(state, gradients._replace(grads=jax.tree.map(jnp.nan_to_num, gradients.grads)))

    made = bench()
    made.apply = jax.jit(zeroing)
    assert failed(update.planted_nan(made))

    def letting_through(state, gradients):
        after, telemetry = real(state, gradients)
        moved = jax.tree.map(lambda p, g: p - 1e-3 * g, state.params, gradients.grads)
        return dataclasses.replace(after, params=moved), telemetry

    made.apply = jax.jit(letting_through)
    assert failed(update.planted_nan(made))
