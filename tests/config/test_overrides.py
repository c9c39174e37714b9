"""Overrides of the command line: names, types, spellings, and what is said of those that are wrong."""

import dataclasses
import typing

import pytest

from jaxlm.config import apply_overrides
from jaxlm.config.overrides import collect, field_types, nearest
from jaxlm.config.schema import ConfigError, RunConfig, flag
from jaxlm.contract import InputError

BASE = RunConfig()


def value(name, *words):
    found = apply_overrides(BASE, words)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def spelt(value):
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def test_every_field_is_read_as_it_is_printed():
    words, wanted = [], BASE
    for name, kind in field_types().items():
        section, _, field = name.rpartition(".")
        there = getattr(getattr(BASE, section) if section else BASE, field)
        words += [f"--{name.replace('_', '-')}", *(spelt(there) if there != "" else [f"x_{field}"])]
        if there == "" and kind is str:
            wanted = dataclasses.replace(
                wanted, **{section: dataclasses.replace(getattr(wanted, section), **{field: f"x_{field}"})}
            )
    assert apply_overrides(BASE, words) == wanted


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--model.n-layers", "7"], "model.n_layers", 7),
        (["--model.n_layers=7"], "model.n_layers", 7),
        (["--optim.lr", "3e-4"], "optim.lr", 3e-4),
        (["--optim.clip-norm", "2"], "optim.clip_norm", 2.0),
        (["--name", "a name"], "name", "a name"),
        (["--name=a=b"], "name", "a=b"),
        (["--model.ffn", "gelu"], "model.ffn", "gelu"),
        (["--model.qk-norm"], "model.qk_norm", True),
        (["--model.qk-norm", "False"], "model.qk_norm", False),
        (["--model.scan-layers=False"], "model.scan_layers", False),
        (["--no-model.scan-layers"], "model.scan_layers", False),
        (["--model.no-scan-layers"], "model.scan_layers", False),
        (["--no-watch.live"], "watch.live", False),
        (["--data.source", "a.txt", "b/*.md"], "data.source", ("a.txt", "b/*.md")),
        (["--data.source=a.txt"], "data.source", ("a.txt",)),
        (["--tokenizer.special-tokens", "<|a|>", "<|b|>"], "tokenizer.special_tokens", ("<|a|>", "<|b|>")),
        (["--optim.no-decay", "norm"], "optim.no_decay", "norm"),
    ],
)
def test_a_spelling_is_read(words, name, expected):
    assert value(name, *words) == expected


def test_no_override_changes_nothing():
    assert apply_overrides(BASE, []) == BASE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.n-layer", "4"],
            r"--model\.n-layer: expected a field of the config, .* nearest is --model\.n-layers$",
        ),
        (["--n-layers", "4"], r"--n-layers: .* the nearest is --model\.n-layers$"),
        (["--optim.seed", "4"], r"the nearest is --train\.seed or --eval\.seed$"),
        (["--optim.n-layers", "4"], r"the nearest is --model\.n-layers$"),
        (["--train.stpes", "4"], r"the nearest is --train\.steps$"),
        (["--modle.d-model", "4"], r"the nearest is --model\.d-model$"),
        (["--no-train.steps"], r"--no-train\.steps: expected a field"),
        (["--xyzzy", "4"], r"--xyzzy: .* `jaxlm train CONFIG --help` lists them$"),
        (["--model"], r"--model: expected a field"),
        (["--"], r"--: expected a field"),
        (["4"], r"'4': expected an override such as --train\.steps 100, found a word without a flag"),
        (["--train.steps", "4", "--train.steps=5"], r"--train\.steps: expected once, found twice"),
        (["--watch.live", "--no-watch.live"], r"--watch\.live: expected once, found twice"),
        (["--model.n_layers", "2", "--model.n-layers", "2"], r"--model\.n-layers: expected once, found twice"),
        (["--no-watch.live=True"], r"--no-watch\.live: expected no value, found 'True'"),
    ],
)
def test_a_wrong_name_is_answered_in_one_line(words, message):
    with pytest.raises(InputError, match=message) as caught:
        apply_overrides(BASE, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.steps", "x"], r"--train\.steps: expected an integer, found 'x'"),
        (["--train.steps", "1.5"], r"--train\.steps: expected an integer, found '1\.5'"),
        (["--train.steps"], r"--train\.steps: expected an integer, found 'nothing'"),
        (["--train.steps="], r"--train\.steps: expected an integer, found ''"),
        (["--train.steps", "1", "2"], r"--train\.steps: expected an integer, found '1 2'"),
        (["--train.seed", "-1"], r"--train\.seed: expected an integer from 0 to"),
        (["--optim.lr", "fast"], r"--optim\.lr: expected a number, found 'fast'"),
        (["--optim.lr", "nan"], r"--optim\.lr: expected a number > 0, found nan"),
        (["--optim.lr", "1e999"], r"--optim\.lr: expected a number > 0, found inf"),
        (["--model.ffn", "relu"], r"--model\.ffn: expected one of swiglu, silu, gelu, found 'relu'"),
        (["--model.qk-norm", "maybe"], r"--model\.qk-norm: expected True or False, found 'maybe'"),
        (["--no-model.qk-norm", "True"], r"--model\.qk-norm: expected True or False, found 'False True'"),
        (["--data.source"], r"--data\.source: expected one or more words .*, found 'nothing'"),
        (["--name", "-h"], r"--name: expected text, found '-h'"),
    ],
)
def test_a_wrong_value_names_field_and_type_and_prints_nothing(words, message, capfd):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(BASE, words)
    assert capfd.readouterr() == ("", "")


def test_fields_changed_together_are_judged_together():
    words = ["--model.n-heads", "3", "--model.d-model", "96", "--train.steps", "5", "--optim.warmup-steps", "5"]
    found = apply_overrides(BASE, [*words, "--train.batch-size", "30", "--train.grad-accum", "5", "--mesh.data", "3"])
    assert (found.model.n_heads, found.model.head_width, found.train.steps, found.mesh.data) == (3, 32, 5, 3)
    for alone, named in [(words[:2], "model.n_heads"), (words[4:6], "optim.warmup_steps")]:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(BASE, alone)
        assert caught.value.field == named


def test_only_the_sections_that_a_verb_reads_can_be_overridden():
    assert apply_overrides(BASE, ["--eval.seed", "3"], only=("eval",)).eval.seed == 3
    with pytest.raises(InputError, match=r"--train\.steps: expected a field of the config, found none of that name"):
        apply_overrides(BASE, ["--train.steps", "3"], only=("eval",))


def test_words_are_collected_by_their_dotted_names():
    words = ["--data.source", "a", "-b", "--no-watch.live", "--train.steps=3", "--model.qk-norm"]
    assert collect(words) == {
        "data.source": ["a", "-b"], "watch.live": ["False"], "train.steps": ["3"], "model.qk_norm": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(field_types()) - {"optim.b1", "optim.b2"}))
def test_every_name_is_nearest_to_itself_with_its_last_letter_lost(name):
    assert nearest(name[:-1], field_types()) == f"the nearest is {flag(name)}"


def test_every_field_has_a_type_that_the_command_line_can_spell():
    kinds = {typing.get_origin(kind) or kind for kind in field_types().values()}
    assert kinds <= {int, float, bool, str, tuple, typing.Literal}
