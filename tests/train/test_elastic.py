"""A run goes on on another mesh: the same examples in the same order, and the loss within float tolerance."""

import dataclasses
import json
import shutil

import pytest

from jaxlm.config.schema import ConfigError, MeshConfig
from jaxlm.run import Run, audit
from jaxlm.train import fit
from tests.conftest import tiny_config

EIGHT = MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp")
FOUR = MeshConfig(data=2, fsdp=2, rules="fsdp")
REPLICAS = MeshConfig(data=4, rules="dp")


def records(run):
    return [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines()]


def gone_on(run, mesh):
    """Take the last four steps back, and train them again on `mesh`."""
    newest = Run.load(run).checkpoints.steps()[-1]
    shutil.rmtree(run / "checkpoints" / f"{newest:08d}")
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    said = []
    fit(dataclasses.replace(tiny_config(), mesh=mesh), out=run, say=said.append)
    return said


def assert_the_same_run(run, finished):
    ours, theirs = records(run), records(finished)
    assert [r["batch_crc"] for r in ours] == [r["batch_crc"] for r in theirs]
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-5)
    assert [r["grad_norm"] for r in ours] == pytest.approx([r["grad_norm"] for r in theirs], rel=1e-4)
    assert [finding for finding in audit(run) if not finding.kept] == []


@pytest.mark.slow
def test_a_run_of_one_device_goes_on_on_eight(run_copy, finished):
    said = gone_on(run_copy, EIGHT)
    assert any("mesh.tensor: saved 1, now 2" in line for line in said)
    assert_the_same_run(run_copy, finished)
    (event,) = [e for e in Run.load(run_copy).events() if e["event"] == "mesh"]
    assert event["saved"] == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
    assert event["now"] == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    # The run is the one it was: its promise and its config say what they said.
    assert Run.load(run_copy).manifest == Run.load(finished).manifest
    assert (run_copy / "resolved.json").read_bytes() == (finished / "resolved.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("meshes", [(EIGHT, FOUR), (REPLICAS, EIGHT), (FOUR, MeshConfig())], ids=["8-4", "dp-fsdp_tp", "4-1"])
def test_a_run_of_several_devices_goes_on_on_others(meshes, finished, tmp_path):
    first = fit(dataclasses.replace(tiny_config(), mesh=meshes[0]), out=tmp_path / "run", say=lambda line: None)
    assert_the_same_run(first.path, finished)
    gone_on(first.path, meshes[1])
    assert_the_same_run(first.path, finished)


def test_a_mesh_that_the_machine_does_not_have_is_refused(run_copy):
    with pytest.raises(ConfigError, match=r"mesh\.data: expected a mesh of at most 8 devices"):
        fit(dataclasses.replace(tiny_config(batch_size=16), mesh=MeshConfig(data=16, rules="dp")), out=run_copy)
