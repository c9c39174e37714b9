"""What a section judges before it says anything of its own: the types of its fields."""

import dataclasses

import numpy as np
import pytest

from jaxlm.config.overrides import field_types
from jaxlm.config.schema import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, sections
from jaxlm.config.section import ConfigError, flag, words_of
from jaxlm.contract import InputError

# Values that are of none of the type, by the type in words.
WRONG = {
    "an integer": [True, 2.0, "4", None, np.int64(4), (4,)],
    "a number": [True, "4", None, (4.0,), np.float32(1)],
    "True or False": [1, 0, "True", None],
    "text": [1, None, b"x", ("x",), True],
    "one of": [1, None, "", "Gelu", ("gelu",), ["gelu"]],
    "one or more words": [["x"], "x", (1,), None, ("x", b"y")],
}


def with_value(name, value):
    section, _, field = name.rpartition(".")
    return sections()[section](**{field: value}) if section else RunConfig(**{field: value})


@pytest.mark.parametrize("name", field_types())
def test_a_value_of_another_type_is_refused_by_name(name):
    words = words_of(field_types()[name])
    (kind,) = [kind for kind in WRONG if words.startswith(kind)]
    for value in WRONG[kind]:
        with pytest.raises(ConfigError) as caught:
            with_value(name, value)
        assert (caught.value.field, caught.value.expected, caught.value.found) == (name, words, value)
        assert str(caught.value) == f"{flag(name)}: expected {words}, found {value!r}"


@pytest.mark.parametrize("name", sections())
def test_a_section_that_is_none_is_refused(name):
    for value in (None, {}, RunConfig(), "x"):
        with pytest.raises(ConfigError, match=f"^--{name}: expected a {sections()[name].__name__}, found"):
            RunConfig(**{name: value})


def test_a_whole_number_where_a_number_is_due_becomes_one():
    assert OptimConfig(clip_norm=2) == OptimConfig(clip_norm=2.0)
    assert type(OptimConfig(clip_norm=2).clip_norm) is float
    assert type(ModelConfig(n_layers=2).n_layers) is int


@pytest.mark.parametrize(
    ("section", "field"), [(TrainConfig, "steps"), (OptimConfig, "lr"), (DataConfig, "max_bytes"), (RunConfig, "name")]
)
def test_a_number_beyond_64_bits_is_refused(section, field):
    with pytest.raises(ConfigError, match=rf"{field.replace('_', '-')}: expected .*, found 1000"):
        section(**{field: 10**400})


def test_a_config_error_is_a_users_mistake_with_its_parts():
    error = ConfigError("model.n_layers", "a number >= 1", 0)
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == "--model.n-layers: expected a number >= 1, found 0"


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().n_layers = 3
