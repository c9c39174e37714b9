"""The probes of inference pass on the code as it is, and each fails on the faults that it is there for."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.contract import ContractError
from jaxlm.infer import Engine, cache, probes, probes_cache, sampling
from jaxlm.infer import engine as engines
from jaxlm.model import POLICIES, abstract_params, init_params
from jaxlm.run import Run
from jaxlm.tokenizer import Tokenizer
from jaxlm.train.probes import require


def failed(probe, word=""):
    with pytest.raises(ContractError, match=f"'probe {probe.name}'"):
        require(probe, artifact="run")
    assert word in probe.found
    return True


def other(engine, **fields):
    """An engine of initial parameters of another config."""
    cfg = dataclasses.replace(engine.cfg, **fields)
    return Engine(init_params(cfg, jax.random.key(1)), cfg, engine.tokenizer)


# ---- no false alarm ----------------------------------------------------------------------------------------------


def test_every_probe_passes_on_the_code_as_it_is(engine):
    results = list(probes.run_probes(engine))
    assert [probe for probe in results if not probe.passed] == []
    assert [probe.name for probe in results] == ["prompt", "streaming", "stop", "chunks", "greedy", "cache", "loop"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"context_length": 2}, {"context_length": 5, "window": 2, "norm": "post"}, {"context_length": 8, "pos": "none"}]
)
def test_a_context_of_few_positions_passes(fields, engine):
    assert probes.cache(other(engine, **fields)).passed


def test_large_scores_as_training_makes_them_pass(engine):
    blocks = engine.params.blocks
    blocks = dataclasses.replace(blocks, wq=blocks.wq * 6, wk=blocks.wk * 6)
    large = Engine(dataclasses.replace(engine.params, blocks=blocks), engine.cfg, engine.tokenizer, precision="bfloat16")
    assert probes.cache(large).passed


@pytest.mark.parametrize("ids", [None, [*range(255, -1, -1), 256, 300]])
def test_tokenizers_of_any_ids_pass(ids, engine):
    tokenizer = Tokenizer.from_merges([(b"\xc3", b"\xa9"), (b"\xf0", b"\x9f")], {"<a>": 400, "<b>": 401}, "o200k", ids=ids)
    there = Engine(engine.params, dataclasses.replace(engine.cfg, vocab_size=tokenizer.vocab_size), tokenizer)
    assert all(probe(there).passed for probe in (probes.prompt, probes.streaming, probes.stop, probes.chunks))


# ---- the cache ---------------------------------------------------------------------------------------------------

masked, extended, layered, drawn = cache.Mask.cached, cache.extend, cache.LayerCache, cache.draw


def shifted(slots, **options):
    """Queries after the prompt turned one position too far."""
    mask = masked(slots, **options)
    return mask.replace(positions_BT=mask.positions_BT + 1) if slots.shape[1] == 1 else mask


def extend_with(lengths=lambda n, tokens: n, after=lambda held, before: held):
    def extend(params, held, tokens, lengths_B, cfg, *, policy):
        logits, made = extended(params, held, tokens, lengths(lengths_B, tokens), cfg, policy=policy)
        return logits, after(made, held)

    return extend


CACHE_FAULTS = {
    "a position off by one": lambda patch: patch.setattr(cache.Mask, "cached", shifted),
    "left padding that is read": lambda patch: patch.setattr(
        cache, "extend", extend_with(lengths=lambda n, tokens: jnp.full_like(n, tokens.shape[1]))
    ),
    "a window that is lost": lambda patch: patch.setattr(
        cache.Mask, "cached", lambda slots, *, capacity, window: masked(slots, capacity=capacity)
    ),
    "a token that its query does not see": lambda patch: patch.setattr(
        cache.Mask, "cached", lambda slots, **options: (m := masked(slots, **options)).replace(
            ranges=m.ranges._replace(end_BT=m.ranges.end_BT - (slots > 0)))
    ),
    "a slot that is written twice": lambda patch: patch.setattr(
        cache, "extend", extend_with(after=lambda made, held: made._replace(length_B=jnp.maximum(made.length_B - 1, 1)))
    ),
    "keys of the wrong row": lambda patch: patch.setattr(
        cache, "extend", extend_with(after=lambda made, held: made._replace(k=made.k[:, ::-1]))
    ),
    "a write past the end": lambda patch: patch.setattr(
        cache, "LayerCache", lambda k, v, slots: layered(k, v, jnp.minimum(slots, k.shape[2] - 1))
    ),
    "half precision": lambda patch: patch.setattr(
        cache, "extend", extend_with(after=lambda made, held: made._replace(v=made.v.astype(jnp.bfloat16).astype(made.v.dtype)))
    ),
    "temperature 0 that draws": lambda patch: patch.setattr(
        cache, "draw", lambda logits, keys, position, knobs, cfg: drawn(
            logits, keys, position, dataclasses.replace(knobs, temperature=jnp.float32(3.0)), cfg)
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHE_FAULTS)
def test_a_fault_of_the_cache_is_seen(name, engine, monkeypatch):
    there = other(engine, window=3) if "window" in name else engine
    CACHE_FAULTS[name](monkeypatch)
    assert failed(probes.cache(there), "a full cache kept" if "past" in name else "")


FAR_FAULTS = {
    "a window that training did not have": ("Mask", lambda slots, *, capacity, window: masked(
        slots, capacity=capacity, window=12)),
    "a table of positions that is too short": ("Mask", lambda slots, **options: (m := masked(slots, **options)).replace(
        positions_BT=jnp.minimum(m.positions_BT, 31))),
    "slots that are not written": ("LayerCache", lambda k, v, slots: layered(k, v, jnp.where(slots < 40, slots, k.shape[2]))),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR_FAULTS)
def test_a_fault_that_begins_further_out_is_seen_where_the_context_ends(name, engine, monkeypatch):
    attribute, wrong = FAR_FAULTS[name]
    if attribute == "Mask":
        monkeypatch.setattr(cache.Mask, "cached", wrong)
    else:
        monkeypatch.setattr(cache, attribute, wrong)
    there = other(engine, window=0)
    assert all(probes_cache._near(there).values())
    assert failed(probes.cache(there), "logits at the last 3 of 64 positions, in float32")


def test_a_precision_that_is_less_than_what_was_asked_for_is_seen(engine):
    there = Engine(engine.params, engine.cfg, engine.tokenizer)
    there.policy = POLICIES["bfloat16"]
    assert failed(probes.cache(there), "in float32 (off by")


def test_a_fault_of_the_served_precision_alone_is_seen(engine, monkeypatch):
    def coarse(params, held, tokens, lengths_B, cfg, *, policy):
        logits, made = extended(params, held, tokens, lengths_B, cfg, policy=policy)
        if policy.compute == "bfloat16":  # a cache of 8 bits
            made = made._replace(v=made.v.astype(jnp.float8_e4m3fn).astype(made.v.dtype))
            made = made._replace(k=jnp.round(made.k))
        return logits, made

    there = Engine(engine.params, engine.cfg, engine.tokenizer, precision="bfloat16")
    assert probes.cache(there).passed
    monkeypatch.setattr(cache, "extend", coarse)
    assert failed(probes.cache(there), "in bfloat16")


def test_the_far_end_is_the_context_of_a_small_model_and_bounded_for_a_large_one(engine):
    assert probes_cache.reach(engine.params, engine.cfg) == engine.cfg.context_length
    large = ModelConfig(d_model=4096, n_layers=32, n_heads=32, context_length=32768, vocab_size=128_000)
    positions = probes_cache.reach(abstract_params(large), large)
    assert 11 <= positions < 200  # on a CPU
    assert probes_cache.reach(abstract_params(dataclasses.replace(large, n_layers=64)), large) <= positions + 1


def test_parameters_that_are_not_finite_are_seen(engine):
    broken = dataclasses.replace(engine.params, final_norm=engine.params.final_norm.at[3].set(jnp.nan))
    assert failed(probes.cache(Engine(broken, engine.cfg, engine.tokenizer)), "finite")


# ---- sampling ----------------------------------------------------------------------------------------------------

filtered, sample = sampling.filtered, sampling.sample


def knobs_with(**change):
    def wrong(logits, knobs):
        return filtered(logits, dataclasses.replace(knobs, **{name: f(getattr(knobs, name)) for name, f in change.items()}))

    return wrong


FILTER_FAULTS = {
    "top_k": {"top_k": lambda k: jnp.where(k > 0, k + 1, k)},
    "top_p": {"top_p": lambda p: jnp.where(p < 1, p / 2, p)},
    "min_p": {"min_p": lambda p: 0 * p},
    "temperature": {"temperature": lambda t: 0 * t + 1},
}


@pytest.mark.parametrize("name", FILTER_FAULTS)
def test_a_filter_that_leaves_something_else_is_seen_and_named(name, engine, monkeypatch):
    for module in (sampling, probes):
        monkeypatch.setattr(module, "filtered", knobs_with(**FILTER_FAULTS[name]))
    assert failed(probes.greedy(engine), name)


def last_of_equals(logits, keys, knobs):
    likeliest = logits.shape[-1] - 1 - jnp.argmax(logits[:, ::-1], axis=-1)
    return jnp.where(knobs.temperature > 0, sample(logits, keys, knobs), likeliest)


DRAW_FAULTS = {
    "temperature 0 draws": lambda logits, keys, knobs: jax.vmap(jax.random.categorical)(keys, logits),
    "never draws": lambda logits, keys, knobs: jnp.argmax(logits, axis=-1),
    "the last of equals": last_of_equals,
    "filters left out": lambda logits, keys, knobs: sample(logits, keys, dataclasses.replace(knobs, top_k=jnp.int32(0))),
}


@pytest.mark.parametrize("name", DRAW_FAULTS)
def test_a_draw_of_another_token_is_seen(name, engine, monkeypatch):
    monkeypatch.setattr(cache, "sample", DRAW_FAULTS[name])
    assert failed(probes.greedy(engine))


def test_a_draw_of_what_only_pads_the_vocabulary_is_seen(engine, monkeypatch):
    monkeypatch.setattr(cache, "draw", lambda logits, keys, position, knobs, cfg: (sample(logits, keys, knobs), True))
    assert failed(probes.greedy(engine), "temperature 0")


# ---- text --------------------------------------------------------------------------------------------------------


class TokenByToken:
    """A decoder that keeps nothing back."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def push(self, token):
        return self.tokenizer.decode([token])

    def flush(self):
        return ""


class Dropping(TokenByToken):
    """A decoder that leaves out what is no text by itself."""

    def push(self, token):
        return self.tokenizer.decode_bytes([token]).decode(errors="ignore")


@pytest.mark.parametrize("decoder", [TokenByToken, Dropping])
def test_half_characters_that_are_shown_or_lost_are_seen(decoder, engine, monkeypatch):
    monkeypatch.setattr(probes, "StreamDecoder", decoder)
    assert failed(probes.streaming(engine), "the text")


push, show = engines._Row.push, engines._Row._show


def shown_at_once(row, token):
    row.held, held = "", row.held
    piece = push(row, token)
    row.held = ""
    return held + piece


def with_stop(row, token):
    text = push(row, token)
    return text + "".join(row.stop) if row.done else text


ROW_FAULTS = {
    "a stop string within a token only": shown_at_once,
    "a stop string that is shown": with_stop,
    "EOS that ends nothing": lambda row, token: "" if token == row.eos else push(row, token),
}


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_row_that_ends_elsewhere_is_seen(name, engine, monkeypatch):
    monkeypatch.setattr(engines._Row, "push", ROW_FAULTS[name])
    assert failed(probes.stop(engine))


def test_a_begin_of_a_stop_string_that_is_lost_at_the_end_is_seen(engine, monkeypatch):
    monkeypatch.setattr(engines._Row, "end", lambda row: "")
    assert failed(probes.stop(engine), "the begin of one")


def test_another_begin_of_prompts_is_seen(engine, monkeypatch):
    wrong = [
        lambda self, prompt: self.tokenizer.encode_ordinary(prompt),
        lambda self, prompt: [self.tokenizer.bos_id, *self.tokenizer.encode(prompt, self.tokenizer.special_tokens)],
        lambda self, prompt: [self.tokenizer.bos_id, *self.tokenizer.encode_ordinary(prompt.strip())],
    ]
    assert probes.TEXT.strip() == probes.TEXT
    for prompt_ids in wrong[:2]:
        monkeypatch.setattr(Engine, "prompt_ids", prompt_ids)
        assert failed(probes.prompt(engine))


# ---- in use ------------------------------------------------------------------------------------------------------


def test_the_engine_of_a_run_is_probed_unless_it_shall_not_be(finished, monkeypatch):
    monkeypatch.setattr(probes, "PROBES", (probes.prompt,))
    assert Engine.of(Run.load(finished)).cfg.vocab_size == 300
    monkeypatch.setattr(Engine, "prompt_ids", lambda self, prompt: self.tokenizer.encode_ordinary(prompt))
    with pytest.raises(ContractError, match=r"'probe prompt' is broken at .*00000012: expected the ids of a document"):
        Engine.of(Run.load(finished))
    assert np.isfinite(Engine.of(Run.load(finished), probes=False).params.embed).all()


def test_another_precision_than_that_of_the_run_is_refused_unless_it_is_asked_for(finished, monkeypatch):
    run = Run.load(finished)
    assert Engine.of(run, probes=False).policy == POLICIES["float32"]
    assert Engine.of(run, precision="bfloat16", probes=False).policy == POLICIES["bfloat16"]
    monkeypatch.setattr(engines, "POLICIES", {**POLICIES, "float32": POLICIES["bfloat16"]})
    match = (
        r"'model' is broken at .*00000012: expected float32 .* activations float32, keys float32, .* found activations bfloat16"
    )
    with pytest.raises(ContractError, match=match):
        Engine.of(run, probes=False)


def test_a_cache_of_other_dtypes_is_refused(finished, monkeypatch):
    real = engines.empty_cache
    half = lambda *sizes, **options: (made := real(*sizes, **options))._replace(v=made.v.astype(jnp.bfloat16))  # noqa: E731
    monkeypatch.setattr(engines, "empty_cache", half)
    with pytest.raises(ContractError, match=r"expected float32 .* values float32, found values bfloat16"):
        Engine.of(Run.load(finished), probes=False)


# ---- what a draw depends on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "positions", "word"),
    [
        (lambda keys: keys, lambda at: at * 0, "a draw of its own at each position"),
        (lambda keys: keys[jnp.zeros(len(keys), jnp.int32)], lambda at: at, "a draw of its own for each key"),
    ],
    ids=["one draw a row", "one key for all rows"],
)
def test_draws_that_do_not_depend_on_position_or_key_are_found(engine, monkeypatch, keys, positions, word):
    real = cache.draw
    monkeypatch.setattr(cache, "draw", lambda logits, keys_B, at_B, *rest: real(logits, keys(keys_B), positions(at_B), *rest))
    assert failed(probes.greedy(engine), word)


@pytest.mark.parametrize("offset", [-1, 1])
def test_tokens_lost_or_doubled_between_chunks_are_found(engine, monkeypatch, offset):
    monkeypatch.setattr(
        probes._Given, "_chunk", lambda self, cursor, knobs: (np.roll(next(self.given), offset, axis=1), cursor)
    )
    assert failed(probes.chunks(engine), "every id once, in order")


def test_one_key_for_all_rows_is_found(engine, monkeypatch):
    monkeypatch.setattr(engines, "np", SimpleNamespace(**{**vars(np), "arange": lambda n, dtype=None: np.zeros(n, dtype)}))
    assert failed(probes.chunks(engine), "a key for each row")


def test_a_loop_that_leaves_out_the_first_token_of_a_chunk_is_found(engine, monkeypatch):
    class Row(engines._Row):
        taken = 0

        def push(self, token):
            self.taken += 1
            return "" if self.taken % engines.CHUNK == 0 else super().push(token)

    monkeypatch.setattr(engines, "_Row", Row)
    assert failed(probes.chunks(engine), "every id once, in order")
