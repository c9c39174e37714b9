"""The model against float64, option by option; scan, dropout, gradients, padded vocabulary, refusals."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.contract import InputError
from jaxlm.model import POLICIES, Mask, forward, hidden, init_params, loss_sums, project, reference
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import PRESETS

run = jax.jit(forward, static_argnames=("cfg", "policy", "rules"))

CASES = {
    "pre": {},
    "post": {"norm": "post"},
    "no norm": {"norm": "none"},
    "large eps": {"norm_eps": 0.3, "qk_norm": True},
    "no residual": {"residual": False},
    "no residual, post": {"residual": False, "norm": "post"},
    "no residual, no norm": {"residual": False, "norm": "none"},
    "no positions": {"pos": "none"},
    "interleaved": {"rope_pairing": "interleaved"},
    "theta": {"rope_theta": 37.0},
    "silu": {"ffn": "silu"},
    "gelu": {"ffn": "gelu"},
    "qk norm": {"qk_norm": True},
    "biases": {"attention_bias": True},
    "score cap": {"attention_softcap": 0.7},
    "logit cap": {"logit_softcap": 2.0},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "untied": {"tie_embeddings": False},
    "one key head": {"n_kv_heads": 1},
    "all key heads": {"n_kv_heads": 0},
    "wide heads": {"head_dim": 6},
    "no padding": {"vocab_multiple": 1},
    "unrolled": {"scan_layers": False},
    "much at once": {
        "norm": "post",
        "ffn": "gelu",
        "rope_pairing": "interleaved",
        "qk_norm": True,
        "attention_bias": True,
        "attention_softcap": 1.0,
        "logit_softcap": 5.0,
        "window": 4,
        "tie_embeddings": False,
        "scan_layers": False,
    },
}


@pytest.fixture(scope="module")
def packs():
    """Ids, segments and positions of two rows of several documents, each row with padding, one in its middle."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 37, (2, 20), dtype=np.int32)
    lengths = [((1, 9), (2, 1), (0, 3), (3, 7)), ((5, 18), (0, 2))]
    segments = np.array([[s for s, n in row for _ in range(n)] for row in lengths], np.int32)
    positions = np.array([[t for _, n in row for t in range(n)] for row in lengths], np.int32)
    spans = [(b, sum(n for _, n in row[:i]), n) for b, row in enumerate(lengths) for i, (s, n) in enumerate(row) if s]
    return ids, segments, positions, spans


def assert_close(found, expected, share=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_logits_of_packed_documents_are_those_of_each_alone_in_float64(name, tiny, drawn, packs):
    cfg = tiny(**CASES[name])
    params, (ids, segments, positions, spans) = drawn(cfg), packs
    with jax.numpy_dtype_promotion("strict"):
        logits = run(params, ids, cfg, mask=Mask.packed(segments, positions, window=cfg.window))
    assert logits.shape == (2, 20, cfg.vocab_size)
    assert logits.dtype == jnp.float32
    for row, start, length in spans:
        at = slice(start, start + length)
        assert_close(logits[row, at], reference.document_logits(named_leaves(params), cfg, ids[row, at]))


def test_without_a_mask_a_row_is_one_document(tiny, drawn, packs):
    for cfg in (tiny(), tiny(window=5)):
        params = drawn(cfg)
        logits = run(params, packs[0], cfg)
        for row, ids in zip(logits, packs[0], strict=True):
            assert_close(row, reference.document_logits(named_leaves(params), cfg, ids))


def test_scan_and_unrolled_layers_agree_in_logits_statistics_and_gradients(tiny, drawn, packs):
    outcomes = []
    for scan in (True, False):
        cfg = tiny(scan_layers=scan, dropout=0.3)
        mask, key = Mask.causal(2, 20), jax.random.key(3)

        @jax.jit
        def loss(params, ids, cfg=cfg, mask=mask, key=key):
            x_BTD, stats, _ = hidden(params, ids, cfg, mask, dropout_key=key)
            return jnp.sum(jnp.square(x_BTD)), stats

        outcomes.append(jax.value_and_grad(loss, has_aux=True)(drawn(cfg), packs[0]))
    assert outcomes[0][0][1].attn.rms.shape == (2,)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *outcomes)


def test_statistics_are_root_mean_squares_of_what_flows(tiny, drawn, packs):
    cfg = tiny(n_layers=1)
    params = drawn(cfg)
    quiet = dataclasses.replace(params.blocks, wo=jnp.zeros_like(params.blocks.wo))
    _, stats, _ = hidden(dataclasses.replace(params, blocks=quiet), packs[0], cfg, Mask.causal(2, 20))
    residual = np.asarray(params.embed, np.float64)[packs[0]]
    np.testing.assert_allclose(stats.residual.rms, [np.sqrt((residual**2).mean())], rtol=1e-5)
    assert stats.attn.rms.tolist() == [0.0]
    assert stats.mlp.rms[0] > 0.1


def test_dropout_needs_a_rate_and_a_key_and_follows_the_key(tiny, drawn, packs):
    cfg, off = tiny(dropout=0.5), tiny()
    params, keys = drawn(cfg), [jax.random.key(i) for i in (0, 0, 1)]
    same, again, other = (np.asarray(run(params, packs[0], cfg, dropout_key=key)) for key in keys)
    np.testing.assert_array_equal(same, again)
    assert np.abs(same - other).max() > 0.1
    plain = np.asarray(run(params, packs[0], off))
    np.testing.assert_array_equal(plain, run(params, packs[0], cfg))
    np.testing.assert_array_equal(plain, run(params, packs[0], off, dropout_key=keys[0]))


def test_every_layer_and_both_parts_drop_other_units(tiny, drawn, packs):
    cfg = tiny(dropout=0.5, norm="none", pos="none", n_layers=1, ffn="silu")
    params = drawn(cfg)
    halves = []
    for silent in ("wo", "w_down"):
        layer = dataclasses.replace(params.blocks, **{silent: jnp.zeros_like(getattr(params.blocks, silent))})
        x_BTD, *_ = hidden(
            dataclasses.replace(params, blocks=layer), packs[0], cfg, Mask.causal(2, 20), dropout_key=jax.random.key(0)
        )
        halves.append(np.asarray(x_BTD) == np.asarray(params.embed)[packs[0]])
    dropped_mlp, dropped_attention = halves
    assert 0.4 < dropped_mlp.mean() < 0.6
    assert 0.4 < dropped_attention.mean() < 0.6
    assert 0.4 < (dropped_mlp == dropped_attention).mean() < 0.6


def test_rows_of_the_embedding_that_no_id_names_get_no_gradient(tiny, drawn):
    cfg = tiny(tie_embeddings=False)
    ids = np.array([[1, 5, 5, 9, 2, 1]], np.int32)

    @jax.jit
    def loss(params):
        return loss_sums(forward(params, ids, cfg), ids, jnp.ones(ids.shape, bool)).nll

    grads = jax.grad(loss)(drawn(cfg))
    touched = np.asarray(grads.embed != 0).any(axis=1)
    assert sorted(np.flatnonzero(touched)) == [1, 2, 5, 9]
    assert (np.asarray(grads.head)[cfg.vocab_size :] == 0).all()
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))


def test_padded_logits_are_masked_and_the_loss_does_not_know_the_padding(tiny, drawn, packs):
    ids, labels = packs[0], np.roll(packs[0], -1, axis=1)
    sums = []
    for multiple in (1, 64):
        cfg = tiny(vocab_multiple=multiple, tie_embeddings=False)
        params = drawn(tiny(vocab_multiple=64, tie_embeddings=False))
        cut = {name: getattr(params, name)[: cfg.padded_vocab] for name in ("embed", "head")}
        params = dataclasses.replace(params, **cut)
        x_BTD, *_ = hidden(params, ids, cfg, Mask.causal(2, 20))
        logits = project(params, x_BTD, cfg, policy=POLICIES["float32"], rules=PRESETS["single"])
        assert logits.shape[-1] == cfg.padded_vocab
        assert (np.asarray(logits)[..., cfg.vocab_size :] == np.float32(-1e30)).all()
        assert np.abs(np.asarray(logits)[..., : cfg.vocab_size]).max() < 1e3
        sums.append(loss_sums(logits, labels, jnp.ones(labels.shape, bool)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *sums)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_computes_in_it_and_gives_float32_logits_near_those_of_float32(precision, tiny, drawn, packs):
    cfg = tiny(qk_norm=True, attention_bias=True)
    params, policy = drawn(cfg), POLICIES[precision]
    with jax.numpy_dtype_promotion("strict"):
        logits = run(params, packs[0], cfg, policy=policy)
        x_BTD, *_ = hidden(params, packs[0], cfg, Mask.causal(2, 20), policy=policy)
    assert logits.dtype == jnp.float32
    assert x_BTD.dtype == jnp.dtype(precision)
    expected = np.asarray(run(params, packs[0], cfg))
    distance = np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()
    assert 1e-5 < distance < 0.05


@pytest.mark.parametrize("gain", ["attn_norm", "mlp_norm", "q_norm", "final_norm"])
def test_a_gain_that_bfloat16_would_round_away_counts(gain, tiny, drawn, packs):
    cfg = tiny(qk_norm=True)
    params = drawn(cfg)
    logits = []
    for value in (1.0, 1.0 + 2.0**-9):
        gains = jnp.full_like(named_leaves(params)[gain if gain == "final_norm" else f"blocks/{gain}"], value)
        if gain == "final_norm":
            changed = dataclasses.replace(params, final_norm=gains)
        else:
            changed = dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **{gain: gains}))
        logits.append(np.asarray(run(changed, packs[0], cfg, policy=POLICIES["bfloat16"])))
    assert (logits[0] != logits[1]).any()


def test_a_sequence_longer_than_the_context_is_refused_with_both_lengths(tiny):
    cfg = tiny()
    params = init_params(cfg, jax.random.key(0))
    with pytest.raises(InputError, match=r"25 positions.*model\.context_length = 24"):
        forward(params, jnp.zeros((1, 25), jnp.int32), cfg)
    assert forward(params, jnp.zeros((1, 24), jnp.int32), cfg).shape == (1, 24, 37)


@pytest.mark.parametrize("shape", [(24,), (1, 1, 24), ()])
def test_ids_of_another_rank_are_refused(shape, tiny):
    with pytest.raises(ValueError, match=r"tokens: expected shape \[B, T\], found \["):
        forward(None, jnp.zeros(shape, jnp.int32), tiny())


def test_ids_that_are_none_and_parameters_of_another_config_are_refused(tiny):
    cfg = tiny()
    params = init_params(cfg, jax.random.key(0))
    for ids, found in (([[37]], "37..37"), ([[-1, 3]], "-1..3"), ([[0.5]], "float32"), (np.zeros((1, 0), int), "at least one")):
        with pytest.raises(ValueError, match=re.escape(found)):
            forward(params, ids, cfg)
    assert forward(params, [[1, 2]], cfg).shape == (1, 2, 37)
    for other in (dataclasses.replace(cfg, n_layers=cfg.n_layers + 1), dataclasses.replace(cfg, qk_norm=not cfg.qk_norm)):
        with pytest.raises(ValueError, match="params: expected those of the config, blocks/"):
            jax.jit(forward, static_argnums=2)(params, jnp.zeros((1, 2), jnp.int32), other)


def test_a_mask_of_other_positions_is_refused():
    cfg = ModelConfig(d_model=16, n_layers=1, n_heads=2, context_length=8, vocab_size=50)
    params = init_params(cfg, jax.random.key(0))
    with pytest.raises(ValueError, match=r"mask\.positions: expected shape"):
        hidden(params, jnp.zeros((2, 8), jnp.int32), cfg, Mask.causal(2, 4))
