"""The probe of the model against its specification: it passes for every config, and sees what is near to the specification."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.model.attention as attention
import jaxlm.model.transformer as transformer
from jaxlm.config import schema
from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.model import POLICIES, Policy
from jaxlm.model.head import output_head
from jaxlm.parallel import make_mesh
from jaxlm.train.probes import TOLERANCE, Bench, require
from jaxlm.train.probes_reference import reference
from jaxlm.train.state import initial_state

SIZES = {"d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "context_length": 64, "vocab_size": 50}
THETA = {"rope_theta": 500_000.0}


def bench(precision="float32", mesh=None, **model):
    cfg = schema.RunConfig(
        model=schema.ModelConfig(**{**SIZES, **model}),
        train=schema.TrainConfig(batch_size=8, precision=precision),
        mesh=mesh or schema.MeshConfig(),
    )
    ids = np.zeros((8, cfg.model.context_length), np.int32)
    made = make_mesh(cfg.mesh)
    with jax.set_mesh(made):
        return Bench(cfg, made, initial_state(cfg, made).params, Batch(ids, ids, ids > 0, ids, ids))


def found(made):
    with jax.set_mesh(made.mesh):
        return reference(made)


def failed(made):
    probe = found(made)
    with pytest.raises(ContractError, match="probe reference"):
        require(probe, artifact="run")
    return True


# ---- no false alarm ----------------------------------------------------------------------------------------------

CONFIGS = {
    "pre": {},
    "post": {"norm": "post", "logit_softcap": 30.0, "ffn": "gelu", "attention_bias": True, "rope_pairing": "interleaved"},
    "none": {"norm": "none", "pos": "none", "ffn": "silu", "tie_embeddings": False, "dropout": 0.2, "n_layers": 1},
    "much": {"qk_norm": True, "attention_softcap": 50.0, "logit_softcap": 30.0, "window": 16, "scan_layers": False, **THETA},
    "no residual": {"residual": False},
    "short": {"context_length": 2, "norm_eps": 0.0, "n_kv_heads": 4},
}


HALF = [("post", "bfloat16"), ("much", "bfloat16"), ("post", "float16")]


@pytest.mark.parametrize(("name", "precision"), [*((name, "float32") for name in CONFIGS), *HALF])
def test_every_config_passes_in_every_precision(name, precision):
    probe = found(bench(precision, **CONFIGS[name]))
    assert probe.passed, probe
    assert float(probe.found.split()[-1]) < 0.7 * TOLERANCE[precision]


MESHES = {
    "fsdp_tp": schema.MeshConfig(fsdp=2, tensor=2, data=2, rules="fsdp_tp"),
    "four shards of two key heads": schema.MeshConfig(tensor=4, rules="tp"),
    "context": schema.MeshConfig(data=2, context=4, rules="dp"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_parameters_on_a_mesh_pass(name):
    made = bench(mesh=MESHES[name], tie_embeddings=False)
    assert found(made).passed


def changed(made, **factors):
    blocks = {name: getattr(made.params.blocks, name) * factor for name, factor in factors.items() if name != "embed"}
    embed = made.params.embed * factors.get("embed", 1.0)
    made.params = dataclasses.replace(made.params, embed=embed, blocks=dataclasses.replace(made.params.blocks, **blocks))
    return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parameters_as_training_makes_them_pass(precision):
    peaks = np.ones((3, 32, 4, 8), np.float32)
    peaks[:, 5] = 40.0  # one channel far above the others
    alike = jnp.ones((128, 1)) * 1e-7  # and ids that were never seen
    for factors in ({"wq": 4.0, "wk": 4.0, "embed": 60.0}, {"wq": peaks, "wo": 0.0, "mlp_norm": 1e-3, "embed": alike}):
        assert found(changed(bench(precision), **factors)).passed, factors


def test_a_precision_that_is_computed_in_another_is_seen(monkeypatch):
    monkeypatch.setitem(POLICIES, "float32", Policy(compute="bfloat16"))
    assert failed(bench())
    monkeypatch.setitem(POLICIES, "float32", Policy(compute="float16"))
    assert failed(bench())
    monkeypatch.setitem(POLICIES, "float32", Policy(logits="bfloat16"))
    assert failed(bench())


# ---- near to the specification -----------------------------------------------------------------------------------

rms_norm, rotate, rope_angles, block, attend = (
    transformer.rms_norm, transformer.rotate, transformer.rope_angles, transformer.block, attention.attention,
)  # fmt: skip
ACTIVATIONS = transformer.ACTIVATIONS


def without_residual(x, layer, cfg, mask, **options):
    y, *rest = block(x, layer, cfg, mask, **options)
    return (y - x, *rest)


def only_in_blocks(x, gain, *, eps):
    return x if sys._getframe(1).f_code.co_name == "hidden" else rms_norm(x, gain, eps=eps)


def tiled(q, k, v, ranges, *, softcap):
    group = q.shape[2] // k.shape[2]
    return attend(q, jnp.tile(k, (1, 1, group, 1)), jnp.tile(v, (1, 1, group, 1)), ranges, softcap=softcap)


def turned_first(x, gain, *, eps):
    """As if queries and keys were normed after the rotation, whose gains then meet other components."""
    return rms_norm(x, gain if x.ndim == 3 else jnp.roll(gain, 1), eps=eps)


def own_block(segments, positions, *, window=0, real=attention.packed):
    """Queries from position 32 of a document on see keys from there on alone."""
    ranges = real(segments, positions, window=window)
    begins = jnp.arange(segments.shape[1])[None] - positions + 32
    return ranges._replace(start_BT=jnp.where(positions >= 32, jnp.maximum(ranges.start_BT, begins), ranges.start_BT))


def open_from_the_fourth(segments, positions, *, window=0, real=attention.packed):
    """Documents from the fourth on see all that is before them."""
    ranges = real(segments, positions, window=window)
    return ranges._replace(start_BT=jnp.where(segments >= 4, 0, ranges.start_BT))


OTHER = {"half": "interleaved", "interleaved": "half"}
# The config's fields, what is replaced, and by what.
FAULTS = {
    "theta": (THETA, transformer, "rope_angles", lambda p, width, *, theta: rope_angles(p, width, theta=1e4)),
    "positions + 1 in the second document": (
        {}, transformer, "rope_angles", lambda p, width, *, theta: rope_angles(p + (p > 4), width, theta=theta),
    ),
    "eps": ({}, transformer, "rms_norm", lambda x, gain, *, eps: rms_norm(x, gain, eps=1e-5)),
    "smaller eps": ({"norm_eps": 1e-5}, transformer, "rms_norm", lambda x, gain, *, eps: rms_norm(x, gain, eps=1e-6)),
    "eps after norm": ({"norm": "post"}, transformer, "rms_norm", lambda x, gain, *, eps: rms_norm(x, gain, eps=1e-5)),
    "mean": ({}, transformer, "rms_norm", lambda x, gain, *, eps: rms_norm(x - x.mean(-1, keepdims=True), gain, eps=eps)),
    "gain": ({}, transformer, "rms_norm", lambda x, gain, *, eps: rms_norm(x, jnp.ones_like(gain), eps=eps)),
    "order of norm and rotation": ({"qk_norm": True}, transformer, "rms_norm", turned_first),
    "residual": ({}, transformer, "block", without_residual),
    "final norm": ({}, transformer, "rms_norm", only_in_blocks),
    "groups": ({}, attention, "attention", tiled),
    "scale": ({}, attention, "attention", lambda q, *rest, **o: attend(q * jnp.asarray(8**0.5, q.dtype), *rest, **o)),
    "cap of scores": ({"attention_softcap": 50.0}, attention, "attention", lambda *rest, softcap: attend(*rest, softcap=0.0)),
    "cap of logits": ({"logit_softcap": 30.0}, transformer, "softcap", lambda x, cap: x),
    "window": ({"window": 16}, attention, "packed", lambda s, p, window, real=attention.packed: real(s, p, window=0)),
    "a seam of positions": (
        {}, transformer, "rope_angles", lambda p, width, *, theta: rope_angles(p + 16 * (p >= 32), width, theta=theta),
    ),
    "a seam far out": (
        {"context_length": 512}, transformer, "rope_angles",
        lambda p, width, *, theta: rope_angles(p + (p >= 150), width, theta=theta),
    ),
    "a seam near the end": (
        {}, transformer, "rope_angles", lambda p, width, *, theta: rope_angles(p + 16 * (p >= 56), width, theta=theta),
    ),
    "a seam far out, in one document": (
        {"context_length": 512}, transformer, "rope_angles",
        lambda p, width, *, theta: rope_angles(p + (p >= 240), width, theta=theta),
    ),
    "far keys": ({}, attention, "packed", own_block),
    "the fourth document": ({}, attention, "packed", open_from_the_fourth),
    "silu": ({}, transformer, "ACTIVATIONS", ACTIVATIONS | {"swiglu": ACTIVATIONS["gelu"]}),
    "gelu": ({"ffn": "gelu"}, transformer, "ACTIVATIONS", ACTIVATIONS | {"gelu": ACTIVATIONS["silu"]}),
    "pairing": ({}, transformer, "rotate", lambda x, angles, *, pairing: rotate(x, angles, pairing=OTHER[pairing])),
    "head": ({}, transformer, "output_head", lambda params: jnp.roll(output_head(params), 1, axis=1)),
    "biases": ({"attention_bias": True}, transformer, "_biased", lambda x, bias: x),
}  # fmt: skip
COARSE = ("theta", "eps", "groups", "silu")  # seen through bfloat16 as well


@pytest.mark.parametrize(("name", "precision"), [*((n, "float32") for n in FAULTS), *((n, "bfloat16") for n in COARSE)])
def test_what_is_near_to_the_specification_is_seen(name, precision, monkeypatch):
    fields, module, attribute, wrong = FAULTS[name]
    monkeypatch.setattr(module, attribute, wrong)
    assert failed(bench(precision, **{"d_model": 64, "n_layers": 2, **fields}))


def test_a_head_of_its_own_where_it_shall_be_the_embedding_is_named():
    made = bench()
    made.params = dataclasses.replace(made.params, head=made.params.embed)
    assert found(made).found == "head otherwise"
    assert failed(made)


def test_numbers_that_are_not_finite_are_seen():
    made = bench()
    made.params = dataclasses.replace(made.params, embed=made.params.embed.at[0].set(jnp.nan))
    assert failed(made)
