"""The engine: what is drawn, what is shown and when, where it ends, what it refuses."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.contract import ContractError, InputError
from jaxlm.infer import Engine, Generation, Sampling
from jaxlm.infer.engine import CHUNK, _Row
from jaxlm.model import forward
from jaxlm.run import Run
from jaxlm.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0.0)
PROMPTS = ["abc def", "", "the € 😀 sign"]

# ---- what is drawn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, seed=11)])
def test_a_generation_is_what_a_loop_over_the_full_forward_pass_draws(sampling, engine):
    logits_of = jax.jit(forward, static_argnames="cfg")
    results = engine.generate(PROMPTS, max_new_tokens=20, sampling=sampling)
    for row, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        key = jax.random.fold_in(jax.random.key(sampling.seed), row)
        ids = engine.prompt_ids(prompt)
        while len(ids) < len(engine.prompt_ids(prompt)) + 20:
            line = np.pad(np.array([ids], np.int32), ((0, 0), (0, 64 - len(ids))))
            logits = logits_of(engine.params, line, engine.cfg)[0, len(ids) - 1]
            if sampling.temperature:
                logits = logits / sampling.temperature + jax.random.gumbel(jax.random.fold_in(key, len(ids)), logits.shape)
            ids.append(int(jnp.argmax(logits)))
            if ids[-1] == engine.tokenizer.eos_id:
                ids.pop()
                break
        assert result.token_ids == ids[len(engine.prompt_ids(prompt)) :]


@pytest.mark.slow
def test_equal_seeds_give_equal_text_and_a_row_does_not_know_the_size_of_its_batch(engine):
    options = dict(max_new_tokens=12, sampling=Sampling(temperature=1.2, seed=4))
    many = engine.generate(["same", "same", "other"], **options)
    assert many == engine.generate(["same", "same", "other"], **options)
    assert many[:1] == engine.generate(["same"], **options)
    assert many[:2] == engine.generate(["same", "same"], **options)
    assert many[:2] == engine.generate(["same", "same", "a much longer neighbour, 36 tokens long"], **options)[:2]
    assert many[0].token_ids != many[1].token_ids
    assert many[0] != engine.generate(["same"], max_new_tokens=12, sampling=Sampling(temperature=1.2, seed=5))[0]


def test_a_longer_generation_begins_with_the_shorter_one(engine):
    sampling = Sampling(temperature=1.0, seed=1)
    short, long = (engine.generate(["abc"], max_new_tokens=n, sampling=sampling)[0] for n in (5, 40))
    assert len(short.token_ids) == 5
    assert short.finish_reason == "length"
    assert long.token_ids[:5] == short.token_ids


def test_a_prompt_begins_with_bos_and_special_text_in_it_is_ordinary_text(engine, tok):
    assert engine.prompt_ids("") == [tok.bos_id]
    ids = engine.prompt_ids("<|endoftext|><|user|>")
    assert ids[0] == tok.bos_id
    assert not set(ids[1:]) & set(tok.special_ids.values())
    assert tok.decode(ids[1:]) == "<|endoftext|><|user|>"


# ---- what is shown ----------------------------------------------------------------------------------------------


def told(chain, tok, text, **options):
    """The generation of a chain that says `text`, and the pieces of its stream."""
    engine = chain(tok.encode(text))
    *pieces, last = engine.stream("", sampling=GREEDY, **{"max_new_tokens": 40, **options})
    assert engine.generate([""], sampling=GREEDY, **{"max_new_tokens": 40, **options}) == [last]
    assert "".join(pieces) == last.text
    assert all(pieces)
    return last, pieces


def test_eos_ends_a_text_and_is_not_in_it(chain, tok):
    result, pieces = told(chain, tok, "Hi €")
    assert result == Generation("Hi €", tok.encode("Hi €"), "stop")
    assert pieces == ["Hi €"]


@pytest.mark.parametrize(("limit", "reason"), [(1, "length"), (2, "length"), (3, "stop"), (17, "stop")])
def test_the_limit_counts_tokens_eos_included(limit, reason, chain, tok):
    result, _ = told(chain, tok, "Hi", max_new_tokens=limit)
    assert result == Generation("Hi"[:limit], tok.encode("Hi")[:limit], reason)


def test_characters_cut_by_the_border_of_a_chunk_are_shown_whole(chain, tok):
    text = "0123456789klmn" + "😀" + "é"
    assert tok.encode(text)[CHUNK - 2 : CHUNK + 2] == list("😀".encode())
    result, pieces = told(chain, tok, text)
    assert pieces == ["0123456789klmn", "😀é"]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_character_that_the_limit_cuts_is_replaced_in_text_and_stream_alike(limit, chain, tok):
    result, _ = told(chain, tok, "€", max_new_tokens=limit)
    assert result.text == tok.decode(result.token_ids) == ("€" if limit == 3 else "\ufffd")


def test_special_tokens_are_ids_and_no_text(chain, tok):
    user = tok.special_ids["<|user|>"]
    engine = chain([ord("a"), user, ord("c"), 0xE2])
    result = engine.generate([""], max_new_tokens=4, sampling=GREEDY)[0]
    assert result == Generation("ac\ufffd", [ord("a"), user, ord("c"), 0xE2], "length")


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one tw", [" tw"], "one"),
        ("xSTyz", ["Ty"], "xS"),  # ST is one token, y the next
        ("xabcyz", ["b"], "xa"),  # inside of one token
        ("q 1€2", ["€"], "q 1"),  # three tokens
        ("q 1😀2", ["1😀2"], "q "),
        ("pqrs", ["rs", "qrs"], "p"),
        ("pqrs", ["r", "qrs"], "pq"),
        ("pqrs", ["s"], "pqr"),
        ("pqrs", ["pqrs"], ""),
        ("pqrs", ["rst", "t"], "pqrs"),
        ("pqrs", ["sp", "pr"], "pqrs"),
        ("0123456789klmnopqrs", ["nopq"], "0123456789klm"),  # over the border of a chunk
    ],
)
def test_a_stop_string_ends_the_text_and_is_never_shown(text, stop, shown, chain, tok):
    result, _ = told(chain, tok, text, stop=stop)
    assert result.text == shown
    assert result.finish_reason == "stop"
    assert tok.decode(result.token_ids).startswith(shown)


def test_a_stop_string_at_the_limit_is_a_stop_and_half_of_one_is_text(chain, tok):
    assert told(chain, tok, "pqrs", stop=["rs"], max_new_tokens=4)[0] == Generation("pq", tok.encode("pqrs"), "stop")
    assert told(chain, tok, "pqrs", stop=["rs"], max_new_tokens=3)[0] == Generation("pqr", tok.encode("pqr"), "length")
    assert told(chain, tok, "q€", stop=["\ufffd"], max_new_tokens=2)[0] == Generation("q", tok.encode("q€")[:2], "stop")


letters = st.text(alphabet="abcS€é", max_size=12)
stops = st.lists(st.text(alphabet="abcS€é", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=letters, stop=stops, ends=st.booleans())
def test_a_row_shows_at_every_token_all_that_is_certain_and_nothing_else(tok, data, text, stop, ends):
    pieces, rest = [], text.encode()
    while rest:  # any cut of the bytes into tokens, not only that of the encoder
        fitting = [i for i, word in tok.vocab.items() if i < 260 and rest.startswith(word)]
        pieces.append(data.draw(st.sampled_from(fitting)))
        rest = rest[len(tok.vocab[pieces[-1]]) :]
    row, shown, expected = _Row(tok, stop), "", None
    for count, token in enumerate(pieces, start=1):
        shown += row.push(token)
        so_far = tok.decode_bytes(pieces[:count]).decode(errors="ignore")
        if expected is None and any(word in so_far for word in stop):
            expected = so_far[: min(so_far.index(word) for word in stop if word in so_far)]
        if expected is None:
            maybe = [n for n in range(len(so_far)) if any(word.startswith(so_far[n:]) for word in stop)]
            assert shown == so_far[: min(maybe, default=len(so_far))]
        assert row.done == (expected is not None)
    assert row.result.token_ids == pieces[: len(row.result.token_ids)]
    shown += row.push(tok.eos_id) if ends else row.end()
    assert row.result.text == shown == (text if expected is None else expected)
    assert row.result.finish_reason == ("length" if expected is None and not ends else "stop")
    assert row.push(ord("z")) == row.end() == ""
    assert row.result.text == shown


def test_rows_end_apart_and_those_that_ended_say_no_more(chain, tok):
    engine = chain(tok.encode("pqrs"))
    result = engine.generate(["", "r", "s"], max_new_tokens=20, sampling=GREEDY)
    assert [r.text for r in result] == ["pqrs", "s", ""]
    assert [r.finish_reason for r in result] == ["stop"] * 3
    assert [len(r.token_ids) for r in result] == [4, 1, 0]


# ---- what is refused --------------------------------------------------------------------------------------------


def test_a_prompt_and_a_limit_beyond_the_context_are_refused_with_what_would_fit(chain):
    engine, prompt = chain([ord("p")]), "0" * 50  # and BOS; what follows a "0" is id 0 without end
    with pytest.raises(InputError, match=r"51 tokens.*--max-new-tokens 14 that makes 65.*context 64.*at most 13 tokens"):
        engine.generate(["", prompt], max_new_tokens=14)
    with pytest.raises(InputError, match=r"101 tokens.*fewer than the trained context 64"):
        next(engine.stream(prompt * 2, max_new_tokens=1))
    assert engine.generate([prompt], max_new_tokens=13, sampling=GREEDY) == [Generation("\0" * 13, [0] * 13, "length")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": 0}, InputError, "--max-new-tokens: expected a number >= 1, found 0"),
        ({"stop": ["a", ""]}, InputError, "--stop: expected text, found an empty string"),
        ({"stop": "END"}, ValueError, "stop: expected a list of str, found one str, 'END'"),
        ({"prompts": "abc"}, ValueError, "expected a list of at least one prompt, found 'abc'"),
        ({"prompts": []}, ValueError, "expected a list of at least one prompt"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, message, engine):
    with pytest.raises(error, match=message):
        engine.generate(**{"prompts": ["a"], "max_new_tokens": 4, **options})


def test_nan_in_the_parameters_breaks_the_contract_instead_of_making_text(engine, tok):
    broken = dataclasses.replace(engine.params, final_norm=engine.params.final_norm.at[3].set(jnp.nan))
    with pytest.raises(ContractError, match=r"'generation'.*expected finite numbers, found NaN"):
        Engine(broken, engine.cfg, tok).generate(["a"], max_new_tokens=1, sampling=GREEDY)


@pytest.mark.parametrize("limit", [3, 20])
def test_nan_that_only_a_drawn_token_brings_in_breaks_the_contract_before_it_is_shown(limit, chain, tok):
    stream = chain(tok.encode("pqrs"), broken_at=ord("q")).stream("", max_new_tokens=limit, sampling=GREEDY)
    with pytest.raises(ContractError, match="finite numbers"):
        next(stream)


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(engine):
    with pytest.raises(ContractError, match=r"expected 262 tokens, found 257. Use the tokenizer of the run"):
        Engine(engine.params, engine.cfg, Tokenizer.from_merges([]))


def test_a_precision_that_there_is_not_is_refused(engine, tok):
    with pytest.raises(ValueError, match="precision: expected one of float32, bfloat16, float16, found 'float64'"):
        Engine(engine.params, engine.cfg, tok, precision="float64")


def test_the_engine_of_a_run_speaks_with_its_parameters_and_precision(finished):
    run = Run.load(finished)
    engine = Engine.of(run, probes=False)
    assert (engine.cfg, engine.policy.compute) == (run.config.model, run.config.train.precision)
    result = engine.generate(["def "], max_new_tokens=5, sampling=GREEDY)[0]
    assert result.text == run.tokenizer.decode(result.token_ids)


def test_the_engine_of_a_run_refuses_another_tokenizer_of_equal_size(run_copy):
    mine = Tokenizer.load(run_copy / "tokenizer")
    swapped = [*mine.merges[:-1], (b"\xfe", b"\xff")]
    other = Tokenizer.from_merges(swapped, mine.special_tokens, mine.pattern)
    assert other.vocab_size == mine.vocab_size
    shutil.rmtree(run_copy / "tokenizer")
    other.save(run_copy / "tokenizer")
    assert other.fingerprint != mine.fingerprint
    with pytest.raises(ContractError, match=f"expected tokenizer {mine.fingerprint}, found tokenizer {other.fingerprint}"):
        Engine.of(Run.load(run_copy))
