"""A document has one gradient wherever it lies; what is lost in one block, or at one end of the rows, is seen."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.faults.catalogue import CATALOGUE
from jaxlm.parallel import make_mesh
from jaxlm.train import probes_whole as whole
from jaxlm.train import step
from jaxlm.train.probes import Bench
from jaxlm.train.probes_rule import gradient_of_loss
from jaxlm.train.state import initial_state

STEPS = itertools.count(50)  # each time another config, so that what is patched is traced
MODEL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 64, "vocab_size": 50, "vocab_multiple": 64}


def config(model=None, mesh=None, optim=None, **train):
    return schema.RunConfig(
        model=schema.ModelConfig(**{**MODEL, **(model or {})}),
        optim=schema.OptimConfig(**{"lr": 1e-2, "warmup_steps": 10, **(optim or {})}),
        train=schema.TrainConfig(**{"steps": next(STEPS), "batch_size": 8, "loss_chunk": 64, **train}),
        mesh=schema.MeshConfig(**(mesh or {})),
    )


def probed(cfg, probe=whole.gradient_of_places):
    rows, length = cfg.train.batch_size, cfg.model.context_length
    ids = np.random.default_rng(3).integers(0, 50, (rows, length + 1), dtype=np.int32)
    t = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.ones((rows, length), bool), np.ones_like(t), t)
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        return probe(Bench(cfg, mesh, initial_state(cfg, mesh).params, batch))


def test_places_are_the_ends_and_the_middle():
    assert whole._places(8, 64) == [(0, 0), (0, 48), (4, 24), (7, 0), (7, 48)]
    assert whole._places(1, 2) == [(0, 0)]
    assert len(whole._places(1, 8)) == 3


def test_it_passes_on_the_code_as_it_is():
    assert probed(config()).found == "those, at 5 places"


@pytest.mark.slow
@pytest.mark.parametrize(
    "cfg",
    [
        config(precision="bfloat16", grad_accum=2),
        config(precision="float16", optim={"clip_norm": 0.0}),
        config({"n_kv_heads": 1, "window": 5, "norm": "post", "tie_embeddings": False, "pos": "none"}, z_loss=0.1),
        config({"context_length": 8, "scan_layers": False}, batch_size=1, remat="block", optim={"b1": 0.0}),
        config(mesh={"data": 2, "fsdp": 2, "rules": "fsdp"}, grad_accum=2),
        config(mesh={"data": 2, "tensor": 2, "rules": "tp"}, precision="bfloat16"),
        config(mesh={"context": 2, "data": 2, "rules": "dp"}, remat="dots"),
    ],
    ids=["bfloat16", "float16", "other model", "one short row", "fsdp", "tensor", "context"],
)
def test_it_passes_in_every_precision_and_on_every_mesh(cfg):
    assert probed(cfg).passed


@pytest.mark.parametrize("name", ["head_gradient_of_last_block", "activations_of_first_block", "late_keys_without_gradient"])
def test_what_is_lost_in_blocks_and_at_the_ends_of_rows_is_seen(name, monkeypatch):
    (patch,) = CATALOGUE[name].plant
    monkeypatch.setattr(patch.target.replace(":", "."), patch.make(_of(patch.target)))
    found = probed(config())
    assert not found.passed
    assert found.expected.startswith("the gradient of a document at position")


def _of(target):
    module, _, name = target.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


MOMENTS = {
    "one row is left out": lambda n, mu: jax.tree.map(lambda m: m * (n != 4), mu),
    "a leaf that differs by a thousandth": lambda n, mu: dataclasses.replace(mu, embed=mu.embed * (1.0 + 1e-3 * (n == 2))),
    "NaN": lambda n, mu: jax.tree.map(lambda m: m * jnp.nan, mu),
    "none": lambda n, mu: jax.tree.map(jnp.zeros_like, mu),
    "another gradient everywhere": lambda n, mu: jax.tree.map(lambda m: 1.3 * m, mu),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_first_moments_that_are_not_the_gradient_are_seen(name, monkeypatch):
    real, calls = step.train_step, itertools.count()

    def planted(state, batch):
        after, telemetry = real(state, batch)
        adam = after.opt_state[-1]
        changed = dataclasses.replace(adam, mu=MOMENTS[name](next(calls), adam.mu))
        return dataclasses.replace(after, opt_state=(*after.opt_state[:-1], changed)), telemetry

    monkeypatch.setattr(step, "train_step", planted)
    assert not probed(SAME).passed


SAME = config()


def test_dropout_gives_no_verdict():
    assert probed(config({"dropout": 0.1})) == ("gradient_of_places", True, "no verdict with dropout", "dropout")


def test_a_cap_whose_slope_is_taken_for_one_is_seen(monkeypatch):
    """The logits of a new model are small, and the cap is straight there."""
    assert probed(config({"logit_softcap": 2.0, "attention_softcap": 2.0}), gradient_of_loss).passed
    monkeypatch.setattr("jaxlm.model.head._block", _without_slope(_of("jaxlm.model.head:_block")))
    found = probed(config({"logit_softcap": 2.0}), gradient_of_loss)
    assert not found.passed
    assert "where the caps bend" in found.expected


def _without_slope(real):
    """Gradients of a block as if its cap were large, with the logits and losses of the one that it has."""

    def block(how, vocab, head_VD, d_head, x_TD, labels_T, weights_T=None):
        there = real(how, vocab, head_VD, d_head, x_TD, labels_T, weights_T)
        if weights_T is None:
            return there
        cap = how.cfg.logit_softcap
        larger = dataclasses.replace(how.cfg, logit_softcap=1e6)
        straight = real(how._replace(cfg=larger), vocab, cap * jnp.tanh(head_VD / cap), d_head, x_TD, labels_T, weights_T)
        return straight[0], (*there[1][:2], straight[1][2])

    return block
