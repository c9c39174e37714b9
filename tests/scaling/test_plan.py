"""Which mesh so many devices are, and what is said where they can be none."""

import dataclasses

import pytest

from jaxlm.config.schema import ConfigError, MeshConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.scaling.plan import on_devices, with_vocabulary


@pytest.mark.parametrize(
    ("mesh", "devices", "expected"),
    [
        ("single", 8, MeshConfig(data=8, rules="dp")),
        ("dp", 4, MeshConfig(data=4, rules="dp")),
        ("fsdp", 16, MeshConfig(data=2, fsdp=8, rules="fsdp")),
        ("fsdp", 1, MeshConfig(rules="fsdp")),
        ("tp", 16, MeshConfig(data=4, tensor=4, rules="tp")),
        ("fsdp_tp", 32, MeshConfig(data=2, fsdp=8, tensor=2, rules="fsdp_tp")),
        ("fsdp_tp", 2, MeshConfig(tensor=2, rules="fsdp_tp")),
        ("context", 4, MeshConfig(context=4, rules="dp")),
    ],
)
def test_the_factor_that_remains_goes_where_the_batch_is_cut(config_on, mesh, devices, expected):
    cfg, assumed = on_devices(config_on(mesh), devices)
    assert cfg.mesh == expected
    assert cfg.mesh.size == devices
    assert f"data {expected.data} fsdp {expected.fsdp} tensor {expected.tensor} context {expected.context}" in assumed
    assert f"rules {expected.rules}" in assumed


def test_the_configs_own_mesh_needs_no_words(config_on):
    cfg = config_on("tp")
    assert on_devices(cfg) == on_devices(cfg, 8) == (cfg, "")


@pytest.mark.parametrize(
    ("mesh", "devices", "nearest"), [("single", 12, 8), ("dp", 33, 32), ("tp", 6, 4), ("tp", 200, 128), ("fsdp", 3, 2)]
)
def test_a_number_that_does_not_work_names_the_nearest_that_does(config_on, mesh, devices, nearest):
    with pytest.raises(InputError, match=rf"--devices: .*found {devices}; the nearest number that works is {nearest}$"):
        on_devices(config_on(mesh), devices)
    assert on_devices(config_on(mesh), nearest)[0].mesh.size == nearest


@pytest.mark.parametrize("devices", [0, -1, 1 << 21])
def test_a_number_of_no_devices_is_refused(config_on, devices):
    with pytest.raises(InputError, match=f"--devices: expected a number from 1 to 1048576, found {devices}"):
        on_devices(config_on(), devices)


def test_a_mesh_that_does_not_lay_out_the_model_is_refused_as_training_refuses_it(config_on):
    cfg = dataclasses.replace(config_on(), mesh=MeshConfig(tensor=3, rules="tp"))
    with pytest.raises(InputError, match="nearest size that works is"):
        on_devices(cfg)
    with pytest.raises(ConfigError, match=r"--mesh\.fsdp: expected 1"):
        on_devices(dataclasses.replace(config_on(), mesh=MeshConfig(fsdp=2, rules="dp")))


def test_the_vocabulary_is_the_models_or_the_tokenizers(config_on, finished):
    assert with_vocabulary(config_on()).model.vocab_size == 512
    assert with_vocabulary(RunConfig()).model.vocab_size == 4096
    of_a_path = dataclasses.replace(RunConfig().tokenizer, path=str(finished / "tokenizer"))
    assert with_vocabulary(dataclasses.replace(RunConfig(), tokenizer=of_a_path)).model.vocab_size == 300
