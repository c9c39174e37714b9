"""The probe of the loop passes on the engine as it is, and fails on what goes wrong between its chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.contract import ContractError
from jaxlm.infer import Engine, Sampling, probes_loop
from jaxlm.infer import engine as engines
from jaxlm.infer.engine import CHUNK, PREFILL_MULTIPLE
from jaxlm.infer.probes_loop import loop, part
from jaxlm.model import abstract_params, init_params
from jaxlm.tokenizer import Tokenizer
from jaxlm.train.probes import require


def failed(probe, *words):
    with pytest.raises(ContractError, match="'probe loop'"):
        require(probe, artifact="run")
    for word in words:
        assert word in probe.found, (word, probe.found)
    return True


def other(engine, *, precision="float32", **fields):
    """An engine of initial parameters of another config."""
    cfg = dataclasses.replace(engine.cfg, **fields)
    return Engine(init_params(cfg, jax.random.key(1)), cfg, engine.tokenizer, precision=precision)


# ---- no false alarm ----------------------------------------------------------------------------------------------


def test_it_passes_over_two_borders_and_past_the_padded_prompt(engine, monkeypatch):
    seen = []
    real = probes_loop._made
    monkeypatch.setattr(probes_loop, "_made", lambda *given: (seen.append((given[2], made := real(*given))), made)[1])
    assert loop(engine).passed
    assert len(seen) == len(probes_loop.RUNS)
    for lengths, made in seen:
        assert 1 < lengths[0] < lengths[1] < PREFILL_MULTIPLE
        assert made.drawn_BT.shape == (2, 3 * CHUNK)
        assert made.told_BT.shape[1] > PREFILL_MULTIPLE


def test_it_passes_in_half_precision_with_large_scores(engine):
    blocks = engine.params.blocks
    blocks = dataclasses.replace(blocks, wq=blocks.wq * 6, wk=blocks.wk * 6)
    params = dataclasses.replace(engine.params, blocks=blocks)
    assert loop(Engine(params, engine.cfg, engine.tokenizer, precision="bfloat16")).passed


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 2},
        {"context_length": 8, "pos": "none"},
        pytest.param({"context_length": 5, "window": 2, "norm": "post"}, marks=pytest.mark.slow),
        pytest.param({"context_length": 26, "qk_norm": True, "scan_layers": False}, marks=pytest.mark.slow),
        pytest.param({"context_length": 8, "precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"context_length": 40, "precision": "float16"}, marks=pytest.mark.slow),
    ],
)
def test_a_short_context_passes(fields, engine):
    assert loop(other(engine, **fields)).passed


def test_ids_that_are_no_tokens_pass(engine):
    tokenizer = Tokenizer.from_merges([(b"a", b"b")], {"<a>": 400, "<b>": 401})
    cfg = dataclasses.replace(engine.cfg, vocab_size=tokenizer.vocab_size)
    assert loop(Engine(init_params(cfg, jax.random.key(0)), cfg, tokenizer)).passed


def test_a_model_that_ends_at_once_is_looked_at_all_the_same(chain, monkeypatch):
    there = chain([])
    assert loop(there).passed
    decode = engines.decode_steps
    monkeypatch.setattr(engines, "decode_steps", later(decode, doubled))
    assert failed(loop(there), "the ids of the keys")


# ---- faults ------------------------------------------------------------------------------------------------------


def later(decode, change):
    """The cursor after every chunk is another."""

    def decode_steps(*arguments, **options):
        chunk, cursor = decode(*arguments, **options)
        return chunk, change(chunk, cursor)

    return decode_steps


def doubled(chunk, cursor):
    return cursor._replace(next_B=chunk[:, -1])


def lagging(chunk, cursor):
    return cursor._replace(cache=cursor.cache._replace(length_B=cursor.cache.length_B + 1))


def forgetful(chunk, cursor):
    """The last slot is empty, and counted."""
    last_B = cursor.cache.length_B - 1
    values = cursor.cache.v.at[:, jnp.arange(len(last_B)), last_B].set(0.0, mode="drop")
    return cursor._replace(cache=cursor.cache._replace(v=values))


def other_row(chunk, cursor):
    return cursor._replace(cache=cursor.cache._replace(k=cursor.cache.k[:, ::-1]))


def other_keys(chunk, cursor):
    return cursor._replace(keys_B=jnp.flip(cursor.keys_B))


CURSORS = {
    doubled: "the likeliest ids, temperature 0",
    lagging: "as many slots filled as tokens read and drawn, temperature 0",
    forgetful: "cached values, temperature 0",
    other_row: "cached keys, any id",
    other_keys: "the ids of the keys",
}


@pytest.mark.parametrize("change", CURSORS)
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_cursor_that_goes_on_elsewhere_is_seen(change, precision, engine, monkeypatch):
    monkeypatch.setattr(engines, "decode_steps", later(engines.decode_steps, change))
    there = Engine(engine.params, engine.cfg, engine.tokenizer, precision=precision)
    assert failed(loop(there), CURSORS[change])


def test_a_hole_that_changes_no_likeliest_token_is_seen(chain, monkeypatch):
    """A model that looks at the last token alone."""
    there = chain([ord("a"), ord("b")])
    monkeypatch.setattr(engines, "decode_steps", later(engines.decode_steps, lagging))
    result = loop(there)
    assert failed(result, "slots filled")
    assert "likeliest" not in result.found


KNOBS = {
    "the default's": (lambda knobs: Sampling().knobs(), ["the likeliest ids, temperature 0", "the ids of the keys"]),
    "temperature 0": (lambda knobs: knobs.replace(temperature=knobs.temperature * 0), ["the ids of the keys"]),
    "no top_k": (lambda knobs: knobs.replace(top_k=knobs.top_k * 0), ["the likeliest ids, top_k 1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOBS)
def test_other_knobs_after_the_first_token_are_seen(name, engine, monkeypatch):
    change, words = KNOBS[name]
    real = Engine._chunk
    monkeypatch.setattr(Engine, "_chunk", lambda self, cursor, knobs: real(self, cursor, change(knobs)))
    assert failed(loop(engine), *words)


def test_knobs_that_the_first_token_alone_does_not_have_are_seen(engine, monkeypatch):
    real = Engine._begin
    monkeypatch.setattr(Engine, "_begin", lambda self, *given: real(self, *given[:3], Sampling(temperature=50.0).knobs()))
    assert failed(loop(engine), "the likeliest ids, temperature 0")


def test_a_cache_as_long_as_the_padded_prompt_is_seen(engine, monkeypatch):
    real = engines.prefill_step

    def prefill_step(params, tokens_BT, *arguments, capacity, policy):
        return real(params, tokens_BT, *arguments, capacity=tokens_BT.shape[1], policy=policy)

    monkeypatch.setattr(engines, "prefill_step", prefill_step)
    assert failed(loop(engine), "slots for the context (32 of 64)", "cached keys, temperature 0 (off by inf")


@pytest.mark.parametrize(
    ("at", "change", "word"),
    [
        (1, lambda lengths: np.full_like(lengths, lengths.max()), "slots filled"),
        (0, lambda tokens: np.roll(tokens, 1, axis=1), "the likeliest ids, temperature 0"),
        (2, lambda keys: jax.random.split(jax.random.key(0), len(keys)), "the ids of the keys"),
    ],
    ids=["one length for all rows", "prompts one place off", "keys of another seed"],
)
def test_a_prompt_that_is_read_otherwise_is_seen(at, change, word, engine, monkeypatch):
    real = Engine._begin

    def begin(self, *given):
        return real(self, *(change(x) if index == at else x for index, x in enumerate(given)))

    monkeypatch.setattr(Engine, "_begin", begin)
    assert failed(loop(engine), word)


def test_ids_that_are_drawn_and_not_handed_on_are_seen(engine, monkeypatch):
    push = engines._Row.push

    def dropping(row, token):
        row.seen = getattr(row, "seen", 0) + 1
        return "" if row.seen == CHUNK + 1 else push(row, token)

    monkeypatch.setattr(engines._Row, "push", dropping)
    assert failed(loop(engine), "every id handed on")


def test_logits_that_are_not_finite_are_refused(engine):
    broken = dataclasses.replace(engine.params, final_norm=engine.params.final_norm.at[3].set(jnp.nan))
    with pytest.raises(ContractError, match="expected finite numbers"):
        loop(Engine(broken, engine.cfg, engine.tokenizer))


# ---- bounds ------------------------------------------------------------------------------------------------------


def test_all_of_a_small_model_is_looked_at_and_of_a_large_one_few_layers_and_positions(engine):
    assert part(engine.params, engine.cfg) == engine.cfg
    large = ModelConfig(d_model=4096, n_layers=32, n_heads=32, context_length=32768, vocab_size=128_000)
    few = part(abstract_params(large), large)
    assert (few.n_layers, few.context_length) == (2, probes_loop.CONTEXT)  # on a CPU
    middle = ModelConfig(d_model=512, n_layers=8, n_heads=8, context_length=1024, vocab_size=32_000)
    assert part(abstract_params(middle), middle).context_length == 1024


def test_the_first_layers_of_a_large_model_pass(engine, monkeypatch):
    monkeypatch.setattr(probes_loop, "ON_CPU", 0.0)
    there = other(engine, n_layers=3, context_length=128)
    few = part(there.params, there.cfg)
    assert (few.n_layers, few.context_length) == (2, probes_loop.CONTEXT)
    assert loop(there).passed
    monkeypatch.setattr(engines, "decode_steps", later(engines.decode_steps, lagging))
    assert failed(loop(there), "cached keys")  # over one border
