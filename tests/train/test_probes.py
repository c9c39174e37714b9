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
from jaxlm.train import probes_initial as initial
from jaxlm.train import probes_update as update
from jaxlm.train import probes_whole as whole
from jaxlm.train import step
from jaxlm.train.probes import Bench, Probe, require, run_probes
from jaxlm.train.state import initial_state, put_batch


def config(**sections):
    parts = {
        "model": schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=512, vocab_size=50, vocab_multiple=64),
        "optim": schema.OptimConfig(lr=1e-2, warmup_steps=10),
        "train": schema.TrainConfig(steps=50, batch_size=4),
        **sections,
    }
    return schema.RunConfig(**parts)


@pytest.fixture(autouse=True)
def on_a_mesh():
    """As in a run: batches are laid out on the mesh, and what reads them has to know it."""
    with jax.set_mesh(make_mesh(schema.MeshConfig())):
        yield


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
    "float16": config(train=schema.TrainConfig(steps=50, batch_size=4, precision="float16")),
    "fsdp": config(mesh=schema.MeshConfig(data=2, fsdp=2, rules="fsdp"), train=schema.TrainConfig(steps=50, batch_size=8)),
}  # fmt: skip


@pytest.mark.parametrize(("context_length", "devices"), [(768, 6), (24, 8), (8, 8), (6, 2), (512, 1)])
def test_a_small_row_is_cut_evenly_over_the_devices_of_its_context(context_length, devices):
    model = dataclasses.replace(config().model, context_length=context_length)
    cfg = config(model=model, mesh=schema.MeshConfig(context=devices, rules="dp"))
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        made = Bench(cfg, mesh, None, real_batch(2, context_length))
        placed = put_batch(made.batch, cfg, mesh)
    assert placed.tokens.shape[1] == made.length
    assert devices <= made.length <= max(devices, min(64, context_length // 2))


SLOW = {"long", "bare", "fsdp"}  # each compiles every probe anew


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CONFIGS])
def test_every_probe_passes_on_the_code_as_it_is(name):
    cfg = CONFIGS[name]
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        batch = real_batch(cfg.train.batch_size, 64)
        results = list(run_probes(cfg, mesh, initial_state(cfg, mesh).params, batch, fresh=True))
    assert [p for p in results if not p.passed] == []
    assert len(results) == len((*forward.FORWARD, *update.UPDATE, *initial.INITIAL, *whole.WHOLE))


def scaled_qk(made, factor):
    blocks = made.params.blocks
    blocks = dataclasses.replace(blocks, wq=blocks.wq * factor, wk=blocks.wk * factor)
    made.params = dataclasses.replace(made.params, blocks=blocks)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [512, 32768])
def test_larger_queries_and_keys_as_training_makes_them_pass(precision, context):
    train = schema.TrainConfig(steps=50, batch_size=4, precision=precision)
    model = dataclasses.replace(config().model, d_model=64, n_layers=4, context_length=context)
    assert forward.rope_shift_invariance(scaled_qk(bench(config(train=train, model=model)), 4.0)).passed


RATES = [(1e-5, 0.01), (1e-6, 0.1), (1e-9, 0.1), (1e-2, 0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_decay_too_small_to_be_seen_is_not_asked_for_and_the_rest_is(schedule, warmup, prepared):
    gradients, state = prepared
    for lr, decay in RATES if warmup else RATES[:1]:
        cfg = config(optim=schema.OptimConfig(lr=lr, weight_decay=decay, warmup_steps=warmup, schedule=schedule))
        made = Bench(cfg, make_mesh(cfg.mesh), state.params, real_batch())
        made.gradients = lambda batch: gradients
        made.state = lambda params, cfg=cfg: dataclasses.replace(state, cfg=cfg, params=params)
        assert update.decay_touches_declared(made).passed, (lr, decay)


@pytest.fixture(scope="module")
def prepared():
    """Gradients and a state, compiled once for all optimizers."""
    with jax.set_mesh(make_mesh(schema.MeshConfig())):
        made = bench()
        return made.gradients(made.batch), made.state(made.params)


@pytest.mark.parametrize("width", [512, pytest.param(768, marks=pytest.mark.slow)])
def test_a_post_norm_model_that_predicts_its_own_token_is_no_fault(width):
    shape = {"n_layers": 1, "n_heads": 4, "d_ff": 64, "vocab_size": 4096, "context_length": 16}
    made = bench(config(model=schema.ModelConfig(d_model=width, norm="post", **shape)), real_batch(2, 16))
    assert initial.initial_loss(made).passed
    made.params = dataclasses.replace(made.params, embed=made.params.embed * 60)
    assert failed(initial.initial_loss(made))


def test_the_step_that_was_probed_is_the_step_that_trains():
    cfg = config(
        optim=schema.OptimConfig(lr=1e-2, warmup_steps=7), train=schema.TrainConfig(steps=50, batch_size=4, grad_accum=2)
    )
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        state, batch = initial_state(cfg, mesh), real_batch(4, 64)
        assert update.train_step(Bench(cfg, mesh, state.params, batch)).passed
        compiled = step.train_step._cache_size()
        for _ in range(2):
            state, _ = step.train_step(state, put_batch(batch, cfg, mesh))
    assert step.train_step._cache_size() == compiled
    assert int(state.step) == 2


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


@pytest.mark.parametrize("at", [5, 500])
@pytest.mark.parametrize("bad", [-1, 50, 4000])
def test_ids_out_of_range_are_seen_wherever_they_stand(bad, at):
    batch = real_batch()
    batch.tokens[1, at] = bad
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


def test_a_leak_that_begins_past_the_first_positions_is_seen(monkeypatch):
    import jaxlm.model.attention as attention

    real = attention.packed

    def late(segments, positions, *, window=0):
        ranges = real(segments, positions, window=window)
        return ranges._replace(end_BT=ranges.end_BT + (positions >= 65))

    monkeypatch.setattr(attention, "packed", late)
    assert failed(forward.causality(bench()))
    with jax.set_mesh(make_mesh(CONFIGS["fsdp"].mesh)):
        assert failed(forward.causality(bench(CONFIGS["fsdp"])))


def test_a_window_of_another_length_is_seen(monkeypatch):
    import jaxlm.model.attention as attention

    cfg = config(model=dataclasses.replace(config().model, window=70))
    real = attention.packed
    assert forward.window(bench(cfg)).passed
    for wrong in (lambda w: w + 1, lambda w: 0, lambda w: 1):
        monkeypatch.setattr(attention, "packed", lambda s, p, *, window=0, wrong=wrong: real(s, p, window=wrong(window)))
        assert failed(forward.window(bench(cfg)))


@pytest.mark.parametrize(("window", "word"), [(0, "no window"), (257, "the window reaches over the whole context")])
def test_a_window_that_cannot_be_probed_says_so(window, word):
    assert forward.window(bench(config(model=dataclasses.replace(config().model, window=window)))).found == word


def test_documents_that_see_each_other_are_seen(monkeypatch):
    import jaxlm.model.attention as attention

    real = attention.packed
    monkeypatch.setattr(
        attention, "packed", lambda s, p, *, window=0: real(jnp.minimum(s, 1), 0 * s + jnp.arange(s.shape[1])[None, :])
    )
    assert failed(forward.documents_isolated(bench()))


def coarse(x):
    """Rounded to bfloat16."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7)


ROUNDED = {
    "positions": lambda real: lambda positions, width, *, theta: real(coarse(positions), width, theta=theta),
    "angles": lambda real: lambda positions, width, *, theta: coarse_angles(positions, width, theta),
}


def coarse_angles(positions, width, theta):
    angles = coarse(positions[..., None] * (theta ** (-jnp.arange(0, width, 2) / width))[None, None, :])
    return jnp.cos(angles), jnp.sin(angles)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", ROUNDED)
def test_positions_and_angles_in_bfloat16_are_seen_in_every_precision(part, precision, scale, monkeypatch):
    import jaxlm.model.transformer as transformer

    rounded = ROUNDED[part](transformer.rope_angles)
    monkeypatch.setattr(transformer, "rope_angles", rounded)
    made = scaled_qk(bench(config(train=schema.TrainConfig(steps=50, batch_size=4, precision=precision))), scale)
    assert failed(forward.rope_shift_invariance(made))
    monkeypatch.setattr(forward, "rope_angles", rounded)
    assert failed(forward.rope_shift_invariance(made))


def test_dropout_when_scoring_is_seen(monkeypatch):
    cfg = config(model=dataclasses.replace(config().model, dropout=0.1))
    real = step.hidden
    assert forward.evaluation_deterministic(bench(cfg)).passed

    def dropping(*args, dropout_key=None, **options):
        return real(*args, dropout_key=jax.random.key(3), **options)

    monkeypatch.setattr(step, "hidden", dropping)
    assert failed(forward.evaluation_deterministic(bench(cfg)))


def test_scoring_that_changes_from_call_to_call_is_seen(monkeypatch):
    calls = iter(range(100))
    made = bench()
    honest = made._forward
    monkeypatch.setattr(made, "_forward", lambda p, b: (honest(p, b)[0], honest(p, b)[1] + 1e-6 * next(calls)))
    assert failed(forward.evaluation_deterministic(made))


def test_an_embedding_that_is_sixty_times_too_large_is_seen():
    made = bench()
    made.params = dataclasses.replace(made.params, embed=made.params.embed * 60)
    assert failed(initial.initial_loss(made))


# ---- faults in the update ------------------------------------------------------------------------------------------


def test_masked_labels_that_count_are_seen(monkeypatch):
    real = step.head_loss

    def counting_all(params, x, labels, mask, cfg, **options):
        return real(params, x, labels, jnp.ones_like(mask), cfg, **options)

    monkeypatch.setattr(step, "head_loss", counting_all)
    assert failed(update.masked_labels(bench()))


@pytest.mark.slow
def test_a_mean_of_means_is_seen(monkeypatch):
    real = step.head_loss

    def mean_of_means(*args, **options):
        objective, sums = real(*args, **options)
        mean = dataclasses.replace(sums, nll=sums.nll / sums.count, z=sums.z / sums.count, count=jnp.ones_like(sums.count))
        return objective / sums.count, mean

    monkeypatch.setattr(step, "head_loss", mean_of_means)
    assert failed(update.accumulation(bench()))


def test_decay_on_everything_and_on_nothing_is_seen(monkeypatch):
    for mask in (None, lambda params: jax.tree.map(lambda _: False, params)):
        monkeypatch.setattr(step, "optimizer", lambda cfg, mask=mask: optax.chain(optax.identity(), _adam(mask)))
        assert failed(update.decay_touches_declared(bench()))


def _adam(mask):
    from jaxlm.optim import adamw

    return adamw(1e-2, weight_decay=0.1, mask=mask)


def test_nans_that_are_zeroed_or_let_through_are_seen(monkeypatch):
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


def planted(change):
    """A wrapper of `train_step` whose results are changed; change gets the number of the call, the state, the telemetry."""
    real, calls = step.train_step, iter(range(100))
    return lambda state, batch: change(next(calls), *real(state, batch))


STEP_FAULTS = {
    "a loss times two": ("loss", lambda n, s, t: (s, dataclasses.replace(t, loss=2 * t.loss))),
    "sums of squares rounded": (
        "mean square",
        lambda n, s, t: (s, dataclasses.replace(t, loss_spread=jnp.sqrt(t.loss_spread**2 + 2e-3 * t.loss**2))),
    ),
    "a step not counted": ("step 1", lambda n, s, t: (dataclasses.replace(s, step=s.step - 1), t)),
    "a state that depends on the call": ("equal bits", lambda n, s, t: (dataclasses.replace(s, skipped=s.skipped + n), t)),
    "telemetry that depends on the call": ("equal bits", lambda n, s, t: (s, dataclasses.replace(t, lr=t.lr + n))),
    "labels miscounted": ("labels", lambda n, s, t: (s, dataclasses.replace(t, labels=t.labels - 1))),
    "a step skipped": ("finite", lambda n, s, t: (s, dataclasses.replace(t, finite=t.finite & False))),
    "an update of nothing": ("an update", lambda n, s, t: (s, dataclasses.replace(t, update_norm=0 * t.update_norm))),
    "parameters kept": ("parameters moved", lambda n, s, t: (dataclasses.replace(s, params=initial_params()), t)),
}


def initial_params():
    return initial_state(config(), make_mesh(config().mesh)).params


@pytest.mark.parametrize("name", STEP_FAULTS)
def test_a_fault_of_the_training_step_is_seen_and_named(name, monkeypatch):
    word, change = STEP_FAULTS[name]
    made = bench()
    assert update.train_step(made).passed
    monkeypatch.setattr(step, "train_step", planted(change))
    probe = update.train_step(made)
    assert failed(probe)
    assert probe.found.startswith(f"not: {word}")
