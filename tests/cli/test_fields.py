"""The fields of the config in the help: every one, with its meaning, what it takes and its value."""

from __future__ import annotations

import dataclasses

import pytest

from jaxlm.cli.fields import listing, meanings
from jaxlm.config.overrides import field_types
from jaxlm.config.schema import ModelConfig, RunConfig, flag


def test_every_field_has_a_meaning_and_is_listed_once_at_80_columns():
    text = listing(RunConfig(), width=80)
    lines = text.splitlines()
    for name in field_types():
        assert sum(line.split()[:1] == [flag(name)] for line in lines) == 1, name
    assert max(map(len, lines)) <= 80
    assert all(meanings().values())
    assert meanings()["ModelConfig.d_model"] == "model width"
    assert meanings()["RunConfig.name"].startswith("the run directory is runs/NAME")


def test_a_field_shows_its_choices_its_value_and_how_to_turn_it_off():
    config = dataclasses.replace(RunConfig(), model=ModelConfig(d_model=96, n_heads=3))
    text = " ".join(listing(config, width=80).split())
    assert "--model.d-model N model width [96]" in text
    assert "--train.precision WORD float32, bfloat16, float16; " in text
    assert "--model.tie-embeddings the head is the embedding [True; --no-model.tie-embeddings for False]" in text
    assert "--data.source TEXT ... " in text
    assert "[stdlib:]" in text


@pytest.mark.parametrize("only", [("eval",), ("tokenizer", "data")])
def test_a_verb_lists_the_sections_that_it_takes(only):
    flags = [line.split()[0] for line in listing(RunConfig(), only).splitlines() if line.startswith("  --")]
    assert flags == [flag(name) for name in field_types() if name.partition(".")[0] in only]
