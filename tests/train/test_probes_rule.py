"""The probes of a step's arithmetic pass on the code as it is, and each fails on the faults that it is there for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.optim import optimizer_of
from jaxlm.parallel import make_mesh
from jaxlm.train import probes_rule as rule
from jaxlm.train.probes import Bench
from jaxlm.train.state import initial_state

CFG = schema.RunConfig(
    model=schema.ModelConfig(d_model=16, n_layers=2, n_heads=2, context_length=64, vocab_size=50, vocab_multiple=64),
    optim=schema.OptimConfig(lr=1e-2, warmup_steps=10),
    train=schema.TrainConfig(steps=50, batch_size=4),
)


@pytest.fixture(scope="module")
def bench():
    """Compiled once: faults are planted in what its functions return."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 50, (4, 65), dtype=np.int32)
    t = np.broadcast_to(np.arange(64, dtype=np.int32), (4, 64)).copy()
    mesh = make_mesh(CFG.mesh)
    with jax.set_mesh(mesh):
        batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.ones((4, 64), bool), np.ones_like(t), t)
        made = Bench(CFG, mesh, initial_state(CFG, mesh).params, batch)
        found = made.gradients(made.batch)
        made.gradients = lambda batch: found
        yield made


@pytest.fixture
def planted(bench, monkeypatch):
    """Plant other gradients."""

    def plant(change):
        found = bench.gradients(bench.batch)
        monkeypatch.setattr(bench, "gradients", lambda batch: found._replace(grads=change(found.grads)))

    return plant


def test_all_pass_on_the_code_as_it_is(bench):
    assert rule.gradient_of_loss(bench).passed
    assert rule.update_rule(bench).passed
    assert rule.schedule(bench).passed


def of_blocks(**changes):
    return lambda grads: dataclasses.replace(grads, blocks=dataclasses.replace(grads.blocks, **changes))


GRADIENTS = {
    "twice the gradient": lambda grads: jax.tree.map(lambda g: 2.0 * g, grads),
    "half of it": lambda grads: jax.tree.map(lambda g: 0.5 * g, grads),
    "its negative": lambda grads: jax.tree.map(lambda g: -g, grads),
    "nothing comes back from one leaf": lambda grads: of_blocks(wv=jnp.zeros_like(grads.blocks.wv))(grads),
    "two layers exchanged": lambda grads: of_blocks(w_down=jnp.flip(grads.blocks.w_down, axis=0))(grads),
    "the embedding without its head": lambda grads: dataclasses.replace(grads, embed=0.3 * grads.embed),
    "none": lambda grads: jax.tree.map(jnp.zeros_like, grads),
    "NaN": lambda grads: jax.tree.map(lambda g: g * jnp.nan, grads),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_that_is_not_that_of_the_loss_is_seen(name, bench, planted):
    planted(GRADIENTS[name])
    assert not rule.gradient_of_loss(bench).passed


@pytest.mark.parametrize(("noise", "some"), [(1e-3, True), (1.0, False)])
def test_what_rounding_hides_is_no_agreement(bench, monkeypatch, noise, some):
    monkeypatch.setattr(rule, "NOISE", noise)
    found = rule.gradient_of_loss(bench)
    agreed, of, directions = found.found.split()[:3]
    assert of == "of"
    assert (0 < int(agreed) < int(directions)) if some else int(agreed) == 0
    assert found.passed is some


UPDATES = {
    "ten times the rate": {"lr": 1e-1},
    "another epsilon": {"eps": 1e-2},
    "betas exchanged": {"b1": 0.95, "b2": 0.9},
    "no clipping": {"clip_norm": 0.0},
    "another limit": {"clip_norm": 0.1},
    "no warm-up": {"warmup_steps": 0},
    "decay on everything": {"no_decay": ""},
    "no decay": {"weight_decay": 0.0},
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_is_not_the_configs_is_seen(name, bench, monkeypatch):
    """The bench applies with optax's interface, without compiling: what another config would have made."""
    optimizer = optimizer_of(dataclasses.replace(CFG.optim, **UPDATES[name]), CFG.train.steps)
    state = bench.state(bench.params)
    monkeypatch.setattr(bench, "state", lambda params: dataclasses.replace(state, opt_state=optimizer.init(params)))

    def apply(state, gradients):
        updates, opt_state = optimizer.update(gradients.grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return dataclasses.replace(state, params=params, opt_state=opt_state), None

    monkeypatch.setattr(bench, "apply", apply)
    assert not rule.update_rule(bench).passed


def of_rows_read_at_first(updates, count):
    first_V = jnp.arange(updates.embed.shape[0]) < 32
    return dataclasses.replace(updates, embed=jnp.where(first_V[:, None], updates.embed, 0.0))


def ends_too_fast(updates, count):
    return jax.tree.map(lambda u: u * (2.5 if count == CFG.train.steps - 1 else 1.0), updates)


@pytest.mark.parametrize("change", [of_rows_read_at_first, ends_too_fast])
def test_an_update_that_is_another_in_places_or_at_the_end_is_seen(change, bench, monkeypatch):
    optimizer = optimizer_of(CFG.optim, CFG.train.steps)

    def apply(state, gradients):
        count = int(state.opt_state[-1].count)
        updates, opt_state = optimizer.update(gradients.grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, change(updates, count))
        return dataclasses.replace(state, params=params, opt_state=opt_state), None

    monkeypatch.setattr(bench, "apply", apply)
    assert not rule.update_rule(bench).passed


def test_the_same_way_with_the_configs_own_optimizer_passes(bench, monkeypatch):
    optimizer = optimizer_of(CFG.optim, CFG.train.steps)

    def apply(state, gradients):
        updates, opt_state = optimizer.update(gradients.grads, state.opt_state, state.params)
        return dataclasses.replace(state, params=jax.tree.map(jnp.add, state.params, updates), opt_state=opt_state), None

    monkeypatch.setattr(bench, "apply", apply)
    assert rule.update_rule(bench).passed


OF_SCHEDULE = {
    "cosine": {"schedule": "cosine"},
    "to nothing": {"schedule": "cosine", "min_lr_ratio": 0.0},
    "linear": {"schedule": "linear", "min_lr_ratio": 0.0, "warmup_steps": 0},
    "wsd": {"schedule": "wsd", "min_lr_ratio": 0.0},
    "warm-up to the end": {"schedule": "wsd", "warmup_steps": 50},
    "constant": {"schedule": "constant", "warmup_steps": 100},
}


def applying(bench, monkeypatch, cfg):
    """Let the bench apply what the optimizer of another config makes, without compiling."""
    optimizer = optimizer_of(cfg.optim, cfg.train.steps)
    state = bench.state(bench.params)
    monkeypatch.setattr(bench, "cfg", cfg)
    monkeypatch.setattr(bench, "state", lambda params: dataclasses.replace(state, opt_state=optimizer.init(params)))

    def apply(state, gradients):
        updates, opt_state = optimizer.update(gradients.grads, state.opt_state, state.params)
        return dataclasses.replace(state, params=jax.tree.map(jnp.add, state.params, updates), opt_state=opt_state), None

    monkeypatch.setattr(bench, "apply", apply)


@pytest.mark.parametrize("name", OF_SCHEDULE)
def test_every_schedule_passes(name, bench, monkeypatch):
    cfg = dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, **OF_SCHEDULE[name]))
    applying(bench, monkeypatch, cfg)
    assert rule.schedule(bench).passed
    assert rule.update_rule(bench).passed


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_schedule_that_never_decays_is_seen(name, bench, monkeypatch):
    from jaxlm.optim import schedules

    monkeypatch.setattr(
        schedules, f"{name}_schedule", lambda peak, steps, warmup, **_: schedules.constant_schedule(peak, warmup)
    )
    applying(bench, monkeypatch, dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, schedule=name)))
    assert not rule.schedule(bench).passed
    assert not rule.update_rule(bench).passed


@pytest.mark.parametrize("lr", [1e-9, 1e-7])
def test_a_rate_that_float32_hardly_shows_is_no_fault(bench, monkeypatch, lr):
    cfg = dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, lr=lr))
    optimizer = optimizer_of(cfg.optim, cfg.train.steps)
    monkeypatch.setattr(bench, "cfg", cfg)

    def apply(state, gradients):
        updates, opt_state = optimizer.update(gradients.grads, state.opt_state, state.params)
        return dataclasses.replace(state, params=jax.tree.map(jnp.add, state.params, updates), opt_state=opt_state), None

    monkeypatch.setattr(bench, "apply", apply)
    state = bench.state(bench.params)
    monkeypatch.setattr(bench, "state", lambda params: dataclasses.replace(state, opt_state=optimizer.init(params)))
    assert rule.update_rule(bench).passed


def test_where_caps_are_saturated_the_curvature_gives_no_verdict_and_no_alarm(bench, monkeypatch):
    """Of the only direction that is looked at there; along the leaves one at least has to agree."""
    monkeypatch.setattr(rule, "agree", lambda difference, expected, noise: (None, 0.0))
    assert rule._of_loss(bench, leaves=False, where=" where the caps bend") == (
        "gradient_of_loss",
        True,
        "differences of the loss as the gradient says where the caps bend",
        "0 of 1 directions agree, the others give no verdict",
    )
    assert not rule._of_loss(bench).passed
