"""The probe of dropout passes for every rate, shape and precision, and fails on another rate or scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import schema
from jaxlm.data import Batch
from jaxlm.model import transformer
from jaxlm.parallel import make_mesh
from jaxlm.train.probes import Bench
from jaxlm.train.probes_dropout import dropout_rate

SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 64, "vocab_size": 50, "vocab_multiple": 64}


def probed(rate, precision="float32", mesh=schema.MeshConfig(), **model):
    cfg = schema.RunConfig(
        model=schema.ModelConfig(**{**SIZES, "dropout": rate, **model}),
        train=schema.TrainConfig(batch_size=4, precision=precision),
        mesh=mesh,
    )
    ids = np.zeros((4, 64), np.int32)
    with jax.set_mesh(make_mesh(mesh)):
        return dropout_rate(Bench(cfg, make_mesh(mesh), None, Batch(ids, ids, ids == 0, ids, ids)))


CONFIGS = {
    "half of it": {"rate": 0.5},
    "little": {"rate": 0.01},
    "bfloat16": {"rate": 0.1, "precision": "bfloat16"},
    "float16": {"rate": 0.3, "precision": "float16", "ffn": "gelu"},
    "post-norm": {"rate": 0.1, "norm": "post", "qk_norm": True, "attention_bias": True, "tie_embeddings": False},
    "no residual": {"rate": 0.1, "residual": False, "pos": "none", "scan_layers": False, "window": 8, "n_kv_heads": 1},
    "fsdp": {"rate": 0.1, "mesh": schema.MeshConfig(data=2, fsdp=2, rules="fsdp")},
    "context": {"rate": 0.1, "mesh": schema.MeshConfig(tensor=2, context=2, rules="tp")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_as_it_is_passes(name):
    found = probed(**CONFIGS[name])
    assert found.passed, found


def test_without_dropout_there_is_nothing_to_see():
    assert probed(0.0).found == "no dropout"


FAULTS = {
    "thrice the rate": lambda real: lambda x, rate, key: real(x, 3 * rate, key),
    "not scaled": lambda real: lambda x, rate, key: real(x, rate, key) * (1 - rate if key is not None else 1),
    "scaled by the share that is dropped": lambda real: (
        lambda x, rate, key: real(x, rate, key) * (rate if key is not None else 1)
    ),
    "none": lambda real: lambda x, rate, key: x,
    "everything": lambda real: lambda x, rate, key: jnp.zeros_like(x) if key is not None else x,
    "the kept share for the dropped one": lambda real: lambda x, rate, key: real(x, 1 - rate, key),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAULTS)
def test_another_rate_or_scale_is_seen(name, precision, monkeypatch):
    monkeypatch.setattr(transformer, "dropout", FAULTS[name](transformer.dropout))
    assert not probed(0.1, precision).passed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_drawn_once_for_all_layers_is_seen(precision, monkeypatch):
    real = transformer.dropout
    monkeypatch.setattr(transformer, "dropout", lambda x, rate, key: real(x, rate, None if key is None else jax.random.key(3)))
    found = probed(0.1, precision)
    assert not found.passed
    assert "drawn apart" in found.expected


def test_dropout_that_is_left_out_of_one_branch_is_seen(monkeypatch):
    real, calls = transformer.dropout, iter(range(100))
    monkeypatch.setattr(transformer, "dropout", lambda x, rate, key: x if next(calls) % 2 else real(x, rate, key))
    found = probed(0.1)
    assert not found.passed
    assert found.expected.startswith("of the feed-forward")
