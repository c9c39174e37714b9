"""The words of a command line in two: the verb's own, and the fields of the config."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.cli import data, generate, quickstart, tokenizer, train
from jaxlm.cli import eval as eval_verb
from jaxlm.cli.arguments import UsageError, parse, split
from jaxlm.config.overrides import field_types


@pytest.mark.parametrize(
    ("words", "own", "ours"),
    [
        ("a --train.steps 5 b", "a b", "--train.steps 5"),
        ("--train.steps=5 b", "b", "--train.steps=5"),
        ("--model.qk-norm b", "b", "--model.qk-norm"),
        ("--model.qk-norm True b", "b", "--model.qk-norm True"),
        ("--no-model.qk-norm b", "b", "--no-model.qk-norm"),
        ("--data.source x y --out o", "--out o", "--data.source x y"),
        ("--train.seed -1 b", "b", "--train.seed -1"),
        ("--train.precision float16 b", "b", "--train.precision float16"),
        ("--model.nope 4 b --json", "b --json", "--model.nope 4"),
        ("--name n b", "b", "--name n"),
    ],
)
def test_a_field_takes_as_many_words_as_its_type_can_hold(words, own, ours):
    assert split(words.split(), field_types()) == (own.split(), ours.split())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "--out", "--train.steps", "5", "--data.source", "--json", "--x.y", "--a=b", "True"])))
def test_no_word_is_lost_or_doubled_and_order_is_kept(words):
    own, ours = split(words, field_types())
    rest = iter(words)
    assert sorted(own + ours) == sorted(words)
    assert all(word in rest for word in own)


def test_words_that_are_text_are_utf_8_and_paths_stay_as_they_came(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda word: word.encode("latin-1"))  # as in a locale that is Latin-1
    came = "naïve".encode().decode("latin-1")
    words = ["train", "--out", came, "--data.source", came, "--tokenizer.special-tokens", came, "b", "--data.separator", came]
    args = parse("tokenizer", tokenizer, words)
    assert args.out == came
    assert args.overrides == ["--data.source", came, "--tokenizer.special-tokens", "naïve", "b", "--data.separator", "naïve"]
    args = parse("tokenizer", tokenizer, ["encode", came, came, "--special-tokens", came, "--document-token", came])
    assert (args.tokenizer, args.text, args.special_tokens, args.document_token) == (came, ["naïve"], ["naïve"], "naïve")
    args = parse("generate", generate, [came, "--prompt", came, "--stop", came, "--stop", "naïve"])
    assert (args.run, args.prompt, args.stop) == (came, "naïve", ["naïve", "naïve"])


def test_options_and_fields_may_stand_in_any_order():
    words = ["--train.steps", "5", "c.py", "--json", "--out", "o", "--model.n-layers=2"]
    for turned in (
        words,
        [*words[2:], *words[:2]],
        ["--out", "o", "--json", "--train.steps", "5", "--model.n-layers=2", "c.py"],
    ):
        args = parse("train", train, turned)
        assert (args.config, args.out, args.json) == ("c.py", "o", True)
        assert sorted(args.overrides) == ["--model.n-layers=2", "--train.steps", "5"]


@pytest.mark.parametrize("module", [train, quickstart, data, tokenizer])
def test_strict_is_short_for_the_field_of_the_data_wherever_that_is_taken(module, capsys):
    verb = module.__name__.rpartition(".")[2]
    words = {"train": ["c"], "data": ["build"], "tokenizer": ["train"]}.get(verb, [])
    assert parse(verb, module, [*words, "--strict"]).overrides == ["--data.strict"]
    assert parse(verb, module, ["--strict", "False", *words]).overrides == ["--data.strict", "False"]
    with pytest.raises(ValueError, match=r"--data\.strict: expected once"):
        parse(verb, module, [*words, "--strict", "--data.strict"])
    with pytest.raises(SystemExit):
        parse(verb, module, ["--help"])
    assert "\n  --strict " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "action", "config", "overrides"),
    [
        ("train c --out o", "train", "c", []),
        ("--json train c", "train", "c", []),
        ("--data.max-bytes 5 train c", "train", "c", ["--data.max-bytes", "5"]),
        ("train c --data.source train x", "train", "c", ["--data.source", "train", "x"]),
        ("train --strict train", "train", "train", ["--data.strict"]),
    ],
)
def test_the_action_is_the_first_word_that_names_one_and_is_no_value_of_a_field(words, action, config, overrides):
    args = parse("tokenizer", tokenizer, words.split())
    assert (args.action, args.config, args.overrides) == (action, config, overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encod", "tok"], "found 'encod'; the nearest is encode"),
        ([], "expected one of train, encode, decode, inspect, diff, convert, bench, found none"),
        (["--json", "--data.source", "train"], "found none|found 'train'"),
    ],
)
def test_an_action_that_is_none_is_a_usage_error(words, message):
    with pytest.raises(UsageError, match=message):
        parse("tokenizer", tokenizer, words)


def test_strict_is_no_option_where_no_text_is_read():
    with pytest.raises(UsageError, match="--strict: expected an option of `jaxlm eval`"):
        parse("eval", eval_verb, ["r", "--strict"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r", "--train.steps", "3"], "--train.steps: expected a field"),
        (["r", "--eval.seed", "1", "--eval.seed", "2"], "--eval.seed: expected once"),
        (["r", "--ste", "3"], "the nearest is --step"),
        (["--step", "1.5", "r"], "--step: expected an integer, found '1.5'"),
        (["r", "s"], "s: expected nothing more"),
        ([], "required: run"),
    ],
)
def test_mistakes_are_usage_errors(words, message):
    with pytest.raises(UsageError if "field" not in message and "once" not in message else ValueError, match=message):
        parse("eval", eval_verb, words)
