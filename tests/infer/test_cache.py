"""The cache against the full forward pass: ragged left-padded prompts, chunks, capacity, neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.infer import Sampling, decode_steps, empty_cache, extend, pad_left, prefill_step
from jaxlm.model import POLICIES, forward, init_params

FLOAT32 = POLICIES["float32"]
LENGTHS = (1, 9, 4)  # of the prompts
TOTAL = 16  # tokens of the longest row

OPTIONS = {
    "plain": {},
    "grouped": {"n_kv_heads": 1},
    "window": {"window": 3},
    "qk norm": {"qk_norm": True},
    "post": {"norm": "post"},
    "unrolled": {"scan_layers": False, "n_kv_heads": 2},
    "much at once": {
        "norm": "post", "qk_norm": True, "window": 5, "n_kv_heads": 2, "attention_bias": True, "attention_softcap": 1.0,
        "logit_softcap": 4.0, "rope_pairing": "interleaved", "tie_embeddings": False,
    },
}  # fmt: skip

append = jax.jit(extend, static_argnames=("cfg", "policy"))
full = jax.jit(forward, static_argnames=("cfg", "policy"))


def model(**fields):
    sizes = dict(d_model=16, n_layers=2, n_heads=4, d_ff=24, context_length=TOTAL, vocab_size=37, vocab_multiple=8)
    cfg = ModelConfig(**{**sizes, **fields})
    params = init_params(cfg, jax.random.key(1))
    return cfg, dataclasses.replace(params, embed=params.embed * 50)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 37, (len(LENGTHS), TOTAL), dtype=np.int32)


@pytest.fixture(scope="module")
def plain():
    return model()


def prefilled(params, cfg, ids, *, capacity=TOTAL, padding=0, policy=FLOAT32):
    """Logits and cache after the prompts: the first LENGTHS ids of each row."""
    tokens, lengths = pad_left([row[:n] for row, n in zip(ids, LENGTHS, strict=True)], 10)
    tokens = np.where(np.arange(10) < 10 - lengths[:, None], padding, tokens)
    cache = empty_cache(cfg, len(ids), capacity=capacity, policy=policy)
    return append(params, cache, tokens, lengths, cfg, policy=policy)


@pytest.mark.parametrize("name", OPTIONS)
def test_prefill_and_decoding_give_the_logits_of_the_full_forward_pass(name, ids):
    cfg, params = model(**OPTIONS[name])
    expected = np.asarray(full(params, ids, cfg))

    def agree(found, row, position):
        found = np.asarray(found)[: cfg.vocab_size]
        np.testing.assert_allclose(found, expected[row, position], rtol=1e-4, atol=1e-5)
        assert found.argmax() == expected[row, position].argmax()

    logits, cache = prefilled(params, cfg, ids)
    for row, length in enumerate(LENGTHS):
        for position in range(length):
            agree(logits[row, 10 - length + position], row, position)
    ones = np.ones(len(LENGTHS), np.int32)
    for step in range(TOTAL - max(LENGTHS)):
        at = np.array(LENGTHS) + step
        assert cache.length_B.tolist() == at.tolist()
        logits, cache = append(params, cache, ids[np.arange(len(LENGTHS)), at][:, None], ones, cfg, policy=FLOAT32)
        for row, position in enumerate(at):
            agree(logits[row, 0], row, position)


def test_ragged_chunks_may_follow_each_other(plain, ids):
    cfg, params = plain
    expected = np.asarray(full(params, ids, cfg))
    _, cache = prefilled(params, cfg, ids)
    second = (7, 0, 10)
    tokens, lengths = pad_left([row[a : a + n] for row, a, n in zip(ids, LENGTHS, second, strict=True)], 10)
    logits, cache = append(params, cache, tokens, lengths, cfg, policy=FLOAT32)
    assert cache.length_B.tolist() == [8, 9, 14]
    for row, (start, length) in enumerate(zip(LENGTHS, second, strict=True)):
        found = np.asarray(logits)[row, 10 - length :, : cfg.vocab_size]
        np.testing.assert_allclose(found, expected[row, start : start + length], rtol=1e-4, atol=1e-5)


def test_the_bytes_of_padding_do_not_matter_and_are_not_written(plain, ids):
    cfg, params = plain
    outcomes = [prefilled(params, cfg, ids, padding=padding) for padding in (0, 36)]
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(*(logits[row, 10 - length :] for logits, _ in outcomes))
    jax.tree.map(np.testing.assert_array_equal, outcomes[0][1], outcomes[1][1])
    cache = outcomes[0][1]
    for row, length in enumerate(LENGTHS):
        for side in (np.asarray(cache.k), np.asarray(cache.v)):
            assert (side[:, row, :length] != 0).all()
            assert (side[:, row, length:] == 0).all()


def test_a_row_does_not_depend_on_its_neighbours(plain, ids):
    cfg, params = plain
    other = ids.copy()
    other[1:] = (other[1:] + 5) % 37
    ones = np.ones(len(LENGTHS), np.int32)
    rows = []
    for batch in (ids, other):
        logits, cache = prefilled(params, cfg, batch)
        more, cache = append(params, cache, batch[:, 10:11], ones, cfg, policy=FLOAT32)
        rows.append((logits[0, -1], more[0, 0], cache.k[:, 0], logits[1, -1]))
    for a, b in zip(rows[0][:3], rows[1][:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(rows[0][3]) != np.asarray(rows[1][3])).any()


def test_nothing_is_overwritten_past_the_capacity(plain, ids):
    cfg, params = plain
    _, cache = prefilled(params, cfg, ids, capacity=10)
    ones = np.ones(len(LENGTHS), np.int32)
    _, full_row = append(params, cache, ids[:, :1], ones, cfg, policy=FLOAT32)  # fills the longest row
    logits, over = append(params, full_row, ids[:, 1:2], ones, cfg, policy=FLOAT32)
    np.testing.assert_array_equal(over.k[:, 1], full_row.k[:, 1])
    np.testing.assert_array_equal(over.v[:, 1], full_row.v[:, 1])
    assert (np.asarray(over.k[:, 0, 2]) != np.asarray(full_row.k[:, 0, 2])).any()
    assert np.isfinite(np.asarray(logits)).all()


def test_the_cache_has_the_compute_dtype_and_its_capacity(plain, ids):
    cfg, params = plain
    policy = POLICIES["bfloat16"]
    logits, cache = prefilled(params, cfg, ids, policy=policy)
    assert (cache.k.dtype, cache.v.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert cache.k.shape == (2, 3, TOTAL, 4, 4)
    assert cache.capacity == TOTAL
    expected = np.asarray(full(params, ids, cfg, policy=policy))
    np.testing.assert_allclose(np.asarray(logits)[1, -1, :37], expected[1, 8], atol=0.03 * np.abs(expected).max())


def test_a_capacity_beyond_the_trained_context_is_refused(plain):
    with pytest.raises(ValueError, match="at most the trained context 16, found 17"):
        empty_cache(plain[0], 1, capacity=17, policy=FLOAT32)


def test_pad_left_keeps_every_token_and_refuses_what_does_not_fit():
    tokens, lengths = pad_left([[7], [1, 2, 3], []], 3)
    assert tokens.tolist() == [[0, 0, 7], [1, 2, 3], [0, 0, 0]]
    assert (tokens.dtype, lengths.dtype, lengths.tolist()) == (np.int32, np.int32, [1, 3, 0])
    with pytest.raises(ValueError, match="broadcast"):
        pad_left([[1, 2, 3]], 2)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_compiled_loop_draws_what_a_loop_by_hand_draws_however_it_is_cut(temperature, plain, ids):
    cfg, params = plain
    knobs, keys = Sampling(temperature=temperature).knobs(), jax.random.split(jax.random.key(3), 3)
    tokens, lengths = pad_left([row[:n] for row, n in zip(ids, LENGTHS, strict=True)], 10)
    options = dict(capacity=TOTAL, policy=FLOAT32)
    once, end = decode_steps(
        params, prefill_step(params, tokens, lengths, keys, knobs, cfg, **options), knobs, cfg, steps=6, policy=FLOAT32
    )
    cursor, pieces = prefill_step(params, tokens, lengths, keys, knobs, cfg, **options), []
    for _ in range(3):
        piece, cursor = decode_steps(params, cursor, knobs, cfg, steps=2, policy=FLOAT32)
        pieces.append(piece)
    np.testing.assert_array_equal(once, np.concatenate(pieces, axis=1))
    assert bool(end.finite)
    assert end.cache.length_B.tolist() == [n + 6 for n in LENGTHS]
    for row, length in enumerate(LENGTHS):
        line = np.zeros((1, TOTAL), np.int32)
        line[0, :length] = ids[row, :length]
        for position in range(length, length + 6):
            logits = full(params, line, cfg)[0, position - 1]
            if temperature:
                logits = jax.random.gumbel(jax.random.fold_in(keys[row], position), logits.shape) + logits / temperature
            line[0, position] = int(jnp.argmax(logits))
        assert once[row].tolist() == line[0, length : length + 6].tolist()
