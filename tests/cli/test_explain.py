"""`jaxlm explain`: without a device, within 80 columns, as JSON, and what it refuses."""

import os
import subprocess
import sys

import pytest

from jaxlm.cli.explain import KINDS, counted, scaled, spent
from jaxlm.scaling.hardware import HARDWARE

BIG = """
from jaxlm.config.schema import *
def config():
    shape = dict(d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=14336, context_length=8192, tie_embeddings=False)
    return RunConfig(
        tokenizer=TokenizerConfig(vocab_size=128256),
        model=ModelConfig(**shape),
        train=TrainConfig(steps=100_000, batch_size=512, precision="bfloat16", remat="block"),
        mesh=MeshConfig(fsdp=32, tensor=4, context=2, rules="fsdp_tp"),
    )
"""


@pytest.fixture
def big(tmp_path):
    """A config of eight billion parameters on 256 devices."""
    path = tmp_path / "big.py"
    path.write_text(BIG)
    return path


def test_no_device_is_looked_for_and_lines_fit_80_columns(big):
    none = {**os.environ, "JAX_PLATFORMS": "no_such_platform", "COLUMNS": "80"}
    command = [sys.executable, "-m", "jaxlm", "explain", str(big), "--kind", "v5p"]
    done = subprocess.run(command, capture_output=True, text=True, env=none)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    for part in (
        "parameters: 8.03 B",
        "FLOPs of a token: 51.5 G",
        "memory of a device",
        "all-gather",
        "permute",
        "fsdp",
        "MFU of 0.4",
    ):
        assert part in done.stdout
    assert "8,192 devices" not in done.stdout


def test_json_is_one_object_with_every_part(cli, big):
    found = cli("explain", big, "--kind", "h200", "--mfu", "0.5", "--json").json()
    assert set(found) == {
        "config", "assumed", "mesh", "hardware", "parameters", "flops_per_token", "memory", "collectives",
        "communication_seconds", "bounds", "time",
    }  # fmt: skip
    assert found["parameters"]["total"] == 8_030_261_248
    assert found["mesh"]["devices"] == 256
    assert found["hardware"]["name"] == "h200"
    assert found["time"]["mfu"] == 0.5
    assert found["memory"]["available"] == 141e9


def test_devices_say_which_mesh_is_assumed(cli):
    said = cli("explain", "tiny", "--devices", "8", "--kind", "a100")
    assert said.status == 0
    assert "8 x NVIDIA A100" in said.out
    assert "assumed: data 8 fsdp 1 tensor 1 context 1, rules dp (the config has 1, single)" in said.out
    assert "assumed" not in cli("explain", "tiny").out
    assert "between devices: a device sends 0 B in a step, 0 s" in cli("explain", "tiny").out


def test_a_run_directory_is_explained_by_its_own_config(cli, finished):
    found = cli("explain", finished, "--train.batch-size", "8", "--json").json()
    assert found["time"]["tokens"] == 8 * 32 * 12
    assert found["parameters"]["embedding"] == 320 * 32


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "h300"], "--kind: expected one of a100"),
        (["--devices", "12"], "the nearest number that works is 8"),
        (["--mfu", "2"], "--mfu: expected a share above 0"),
        (["--mesh.tensor", "3", "--mesh.rules", "tp"], "nearest size that works"),
        (["--devices", "x"], "--devices: expected an integer"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cli, words, says):
    said = cli("explain", "tiny", *words)
    assert said.status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err


def test_a_model_that_does_not_fit_is_said_to(cli, big):
    assert "DOES NOT FIT" in cli("explain", big, "--kind", "v5e", "--train.remat", "none").out
    assert "WAITS" in cli("explain", big, "--kind", "v5e", "--mesh.tensor", "32", "--mesh.fsdp", "4").out
    assert "in the host's memory" in cli("explain", big, "--train.remat", "offload").out


def test_help_names_every_kind():
    assert set(KINDS.replace(" or ", ", ").split(", ")) == set(HARDWARE)


def test_numbers_have_three_digits_and_a_prefix():
    assert [scaled(x, "B") for x in (0, 1, 999, 1000, 1536, 8.03e9, 999_900, 2.5e24)] == [
        "0 B", "1 B", "999 B", "1 kB", "1.54 kB", "8.03 GB", "1 MB", "2.5 YB",
    ]  # fmt: skip
    assert [scaled(x, "s") for x in (0.5, 0.0123, 4.5e-6)] == ["500 ms", "12.3 ms", "4.5 µs"]
    assert [counted(x) for x in (12, 2500, 8.03e9, 1.5e13)] == ["12", "2.5 K", "8.03 B", "15 T"]
    assert [spent(x) for x in (0.25, 59, 90, 7200, 200_000, 1e8)] == [
        "250 ms",
        "59 s",
        "1.5 min",
        "2 h",
        "2.31 days",
        "3.17 years",
    ]
