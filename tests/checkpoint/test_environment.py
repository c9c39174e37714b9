"""What bitwise equality depends on, and what a resume says of it."""

from __future__ import annotations

import json
import platform

import jax
import numpy as np
import pytest

from jaxlm.checkpoint import differences, environment
from jaxlm.checkpoint.environment import _xla_flags


def now(**changed):
    usual = {"mesh_shape": {"data": 1, "fsdp": 8}, "grad_accum": 2, "precision": "float32", "attention": "xla, rows at once"}
    return environment(**{**usual, **changed})


def test_it_states_versions_devices_mesh_and_step_and_is_plain_json():
    found = now()
    assert json.loads(json.dumps(found)) == found
    assert (found["jax"], found["numpy"], found["python"]) == (jax.__version__, np.__version__, platform.python_version())
    assert (found["platform"], found["device_count"], found["process_count"]) == ("cpu", 8, 1)
    assert (found["mesh"], found["grad_accum"], found["precision"]) == ({"data": 1, "fsdp": 8}, 2, "float32")
    assert found["cpu"].startswith(platform.machine())


def test_the_same_environment_has_no_differences():
    assert differences(now(), json.loads(json.dumps(now()))) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"mesh_shape": {"data": 2, "fsdp": 8}}, "mesh.data: saved 1, now 2"),
        ({"grad_accum": 4}, "grad_accum: saved 2, now 4"),
        ({"precision": "bfloat16"}, "precision: saved float32, now bfloat16"),
        ({"attention": "pallas, tpu"}, "attention: saved xla, rows at once, now pallas, tpu"),
    ],
)
def test_a_difference_is_one_line_with_both_values(changed, line):
    assert differences(now(), now(**changed)) == [line]


def test_settings_of_jax_and_variables_of_the_compiler_are_seen(monkeypatch):
    before = now()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with jax.default_matmul_precision("highest"):
        lines = differences(before, now())
    assert lines == [
        "settings.jax_default_matmul_precision: saved none, now highest",
        "variables.NVIDIA_TF32_OVERRIDE: saved none, now 0",
    ]


def test_flags_count_by_their_last_value_whatever_their_order_and_without_dumps():
    assert _xla_flags("--b=1 --a=2 --b=3 --xla_dump_to=/somewhere") == _xla_flags("--b=3 --a=2") == ["--a=2", "--b=3"]
    assert differences({"xla_flags": ["--a=1", "--b"]}, {"xla_flags": []}) == ["xla_flags: saved --a=1 --b, now none"]


def test_what_one_side_does_not_state_is_unknown_there():
    assert differences({"jax": "1"}, {"jax": "1", "cpu": "x"}) == ["cpu: saved unknown, now x"]
    assert differences({"mesh": {"data": 1}}, {}) == ["mesh.data: saved 1, now unknown"]
