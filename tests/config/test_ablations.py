"""The ablations of a base: installed ones change what they say and nothing else, at equal tokens; a file's own; refusals."""

import dataclasses
from pathlib import Path

import pytest

from jaxlm.config.ablations import BASE, at_tokens, changed, chosen, load_ablations, words
from jaxlm.config.load import differing_fields, installed
from jaxlm.config.schema import ConfigError
from jaxlm.contract import InputError
from jaxlm.model import param_specs
from jaxlm.model.spec import count_params

PLAIN = "from jaxlm.config.schema import *\n\ndef config():\n    return RunConfig(name='mine')\n"


def size(cfg):
    return count_params(param_specs(dataclasses.replace(cfg.model, vocab_size=cfg.tokenizer.vocab_size)))


def test_each_installed_ablation_changes_the_fields_it_names_and_no_other():
    base, made = load_ablations()
    assert len(made) > 10
    for name, changes in made.items():
        lines = differing_fields(base, changed(base, changes))
        assert sorted(line.partition(":")[0][2:].replace("-", "_") for line in lines) == sorted(changes), name


@pytest.mark.parametrize("name", installed())
def test_without_a_gate_the_feed_forward_is_as_large_as_with_one(name):
    base, made = load_ablations(name)
    assert size(changed(base, made["silu"])) == pytest.approx(size(base), rel=0.01)


def test_every_ablation_sees_the_same_tokens_and_is_validated_on_as_many_as_often():
    base, made = load_ablations()
    for tokens in (base.train.steps * base.tokens_per_step, 1_000_000):
        for name, changes in made.items():
            cfg = at_tokens(base, changes, tokens)
            assert abs(cfg.train.steps * cfg.tokens_per_step - tokens) <= cfg.tokens_per_step / 2, name
            scored = [c.eval.batches * c.train.batch_size for c in (cfg, base)]
            assert scored[0] == pytest.approx(scored[1], rel=0.01), name
            assert cfg.train.steps // cfg.eval.every == pytest.approx(base.train.steps // base.eval.every, abs=1), name
            warm = [c.optim.warmup_steps / c.train.steps for c in (cfg, base)]
            assert warm[0] == 0 if name == "no-warmup" else warm[0] == pytest.approx(warm[1], abs=0.6 / cfg.train.steps), name
    assert at_tokens(base, {}, base.train.steps * base.tokens_per_step) == base


def test_fields_of_sections_and_of_the_whole_are_changed():
    base, _ = load_ablations()
    found = changed(base, {"name": "other", "model.d_ff": 96, "model.n_layers": 1})
    assert (found.name, found.model.d_ff, found.model.n_layers, found.optim) == ("other", 96, 1, base.optim)
    with pytest.raises(ConfigError, match=r"--model\.n-layers"):
        changed(base, {"model.n_layers": "three"})


def test_the_base_comes_first_and_names_choose():
    _, made = load_ablations()
    assert list(chosen(made, [])) == [BASE, *made]
    assert list(chosen(made, ["silu", BASE])) == [BASE, "silu"]
    with pytest.raises(InputError, match=r"nothing: expected an ablation, no-norm, .*; found none of that name"):
        chosen(made, ["nothing"])


def test_a_file_brings_its_own_ablations_or_takes_the_installed_ones(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PLAIN)
    base, made = load_ablations(file, ["--model.d-model", "64"])
    assert (base.name, base.model.d_model, list(made)) == ("mine", 64, list(load_ablations()[1]))
    file.write_text(PLAIN + "\ndef ablations(base):\n    return {'deep': {'model.n_layers': 2 * base.model.n_layers}}\n")
    base, made = load_ablations(Path(file))
    assert changed(base, made["deep"]).model.n_layers == 2 * base.model.n_layers
    assert words(made["deep"]) == "n_layers 8"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (
            "{'a': {'model.nrom': 'none'}}",
            r"a: expected a field of the config, found model\.nrom; the nearest is --model",
        ),
        ("{'a/b': {}}", "expected names of directories, other than base, found 'a/b'"),
        ("{'base': {'model.norm': 'none'}}", "other than base"),
    ],
)
def test_ablations_that_can_be_none_are_refused(made, why, tmp_path):
    (tmp_path / "mine.py").write_text(f"{PLAIN}\ndef ablations(base):\n    return {made}\n")
    with pytest.raises(InputError, match=why):
        load_ablations(tmp_path / "mine.py")


def test_a_value_that_cannot_be_names_its_field():
    base, _ = load_ablations()
    with pytest.raises(ConfigError, match=r"--model\.n-heads"):
        at_tokens(base, {"model.n_heads": 3}, 10_000)
