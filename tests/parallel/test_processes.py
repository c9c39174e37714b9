"""Two real processes on this machine: what they tell each other, the arrays they share, a save together, a stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.schema import MeshConfig
from jaxlm.contract import InputError
from jaxlm.parallel import make_mesh, processes
from jaxlm.parallel.lookout import LOST
from jaxlm.parallel.processes import Cluster, cluster_of
from tests.parallel import test_parity

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
PATIENCE = 240.0


def pair(what: str, folder: Path, *, thaw: bool = False, patience: float = PATIENCE) -> list[tuple[int, str, str]]:
    """Run `what` in two processes of two devices each; status, output and errors of each.

    thaw: process 0 holds itself, and is let go when process 1 has ended.
    """
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, str(HERE.with_name("together.py")), what, str(folder)]
    base = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    base |= {"JAXLM_COORDINATOR": f"127.0.0.1:{port}", "JAXLM_NUM_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=base | {"JAXLM_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
    try:
        if thaw:
            started[1].wait(patience)
            started[0].send_signal(signal.SIGCONT)
        ended = [process.communicate(timeout=patience) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(started, ended, strict=True)]


def results(ended: list[tuple[int, str, str]]) -> list[dict]:
    assert [status for status, _, _ in ended] == [0, 0], ended
    return [json.loads(out.strip().splitlines()[-1]) for _, out, _ in ended]


# ---- two processes -------------------------------------------------------------------------------------------------


def test_two_processes_share_arrays_save_together_and_refuse_together(tmp_path):
    first, second = results(pair("saving", tmp_path / "checkpoints"))
    assert first["manifest"] == second["manifest"]
    for found in (first, second):
        assert (found["unequal"], found["moved"]) == ([], [])
        assert "another state for the same step" in found["other"]
        assert "1 of 24 values of rows NaN" in found["nan"]
        assert "No space left on device" in found["full"]
        assert (found["steps"], found["left"]) == ([5], ["00000005"])
    assert "process 1 of 2" in first["full"]
    # One process reads what two have written, and would have promised the same of each leaf.
    store = CheckpointStore(tmp_path / "checkpoints")
    assert all(finding.kept for finding in store.verify(5, deep=True))
    rng = np.random.default_rng(1)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"rows": (8, 3), "columns": (3, 8)}.items()}
    with CheckpointStore(tmp_path / "alone", asynchronous=False) as alone:
        alone.save(made, 5, facts={}, parents={})
        for name in made:
            assert alone.manifest(5).facts["leaves"][name] == store.manifest(5).facts["leaves"][name]


@pytest.mark.slow
def test_every_process_puts_the_rows_that_it_needs_and_hears_what_the_others_say(tmp_path):
    first, second = results(pair("agreement", tmp_path))
    assert first["found"]["rows"] == [[0, 1, 2, 3], True, 496.0]
    assert second["found"]["rows"] == [[4, 5, 6, 7], True, 496.0]
    for name in ("columns", "both", "none"):  # rows that both need
        assert first["found"][name] == second["found"][name] == [list(range(8)), True, 496.0]
    assert first["said"] == second["said"] == "from 0"
    assert first["gathered"] == second["gathered"] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_change_no_loss_and_no_gradient(tmp_path):
    results(pair("parity", tmp_path, patience=800))
    for name, _, options in test_parity.of_two_processes():
        with np.load(tmp_path / f"{name}.npz") as found:
            grads = {path: found[path] for path in found.files if path != "loss"}
            test_parity.assert_equal_to_one_device(float(found["loss"]), grads, options["precision"])


@pytest.mark.slow
def test_a_stop_asked_for_in_one_process_is_at_one_step_in_both(tmp_path):
    first, second = results(pair("stopping", tmp_path))
    assert first == second
    for step, name in first:  # one lookout after another
        assert name == "SIGTERM"
        assert step > 50


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_is_missed_by_name(which, tmp_path):
    began = time.monotonic()
    ended = pair("lost", tmp_path / str(which))
    assert ended[which][0] == -9
    status, _, errors = ended[1 - which]
    assert status == LOST
    assert f"process {which} of 2" in errors.strip().splitlines()[-1]
    assert "is lost" in errors
    assert "the same command goes on" in errors
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.slow
def test_a_process_0_that_is_held_is_missed_as_one_that_is_gone(tmp_path):
    (_, _, _), (status, _, errors) = pair("frozen", tmp_path, thaw=True)
    assert status == LOST, errors
    assert "process 0 of 2, which coordinates the others, is lost" in errors
    assert "No answer for 3 s" in errors


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_where_a_process_fails_by_itself_the_other_ends_with_its_status(which, tmp_path):
    ended = pair("failing", tmp_path / str(which))
    assert ended[which][0] == 2
    status, _, errors = ended[1 - which]
    assert status == 2, errors  # that of a user's mistake: the same command would fail again
    assert f"process {which} of 2 failed: InputError: its own fault" in errors


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_fault_of_the_lookout_itself_is_not_taken_for_a_loss(which, tmp_path):
    status, _, errors = pair("faulty", tmp_path / str(which))[which]
    assert status == 1
    assert f"the lookout of process {which} of 2 failed: TypeError" in errors
    assert "Traceback" in errors


# ---- one process ---------------------------------------------------------------------------------------------------


def test_the_cluster_is_that_of_the_flags_then_of_the_variables():
    given = {"JAXLM_COORDINATOR": "10.0.0.1:1234", "JAXLM_NUM_PROCESSES": "4", "JAXLM_PROCESS_ID": "3"}
    assert cluster_of(environ=given) == Cluster("10.0.0.1:1234", 4, 3)
    assert cluster_of(process_id=0, num_processes=2, environ=given) == Cluster("10.0.0.1:1234", 2, 0)
    assert cluster_of(environ={}) is None
    assert cluster_of(distributed=True, environ={}) == cluster_of(environ={"JAXLM_DISTRIBUTED": "1"}) == Cluster()


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_a_launcher_that_says_that_there_are_several_is_believed(environ, several):
    assert (cluster_of(environ=environ) is not None) == several


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"coordinator": "host:1"}, "together, found no --num-processes, --process-id"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "--coordinator: expected HOST:PORT"),
        ({"coordinator": "host:99999", "num_processes": 2, "process_id": 0}, "--coordinator: expected HOST:PORT"),
        ({"coordinator": "host:1", "num_processes": 0, "process_id": 0}, "--num-processes: expected an integer >= 1"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "--process-id: expected an integer from 0 to 1"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": -1}, "--process-id: expected an integer from 0 to 1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        cluster_of(**given, environ={})


def test_a_process_on_its_own_agrees_with_itself():
    processes.start(None, heartbeat=30)
    processes.start(Cluster("localhost:1", 1, 0), heartbeat=30)
    assert (processes.index(), processes.count(), processes.primary(), processes.several()) == (0, 1, True, False)
    processes.barrier("alone")
    assert processes.told("said", "this") == "this"
    assert processes.gathered("who", "me") == ["me"]


@pytest.mark.parametrize(("cluster", "kind"), [(Cluster(), InputError), (Cluster("localhost:1", 2, 0), ValueError)])
def test_only_a_cluster_that_was_to_be_found_is_said_to_be_missing(cluster, kind, monkeypatch):
    def initialize(*_, **__):
        raise ValueError("a word of jax")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(ValueError, match="a word of jax") as raised:
        processes.start(cluster, heartbeat=30)
    assert raised.type is kind


@pytest.mark.parametrize(
    ("spec", "devices", "expected"),
    [(P("data"), [0, 1], [0, 1]), (P("data"), [6, 3], [3, 6]), (P(None, "data"), [5], range(8)), (P(), [0], range(8))],
)
def test_the_rows_needed_are_those_of_the_devices(spec, devices, expected):
    mesh = make_mesh(MeshConfig(data=8))

    class Share:
        """A sharding of which a process holds some devices only."""

        def addressable_devices_indices_map(self, shape):
            every = NamedSharding(mesh, spec).devices_indices_map(shape)
            return {jax.devices()[i]: every[jax.devices()[i]] for i in devices}

    assert processes.rows_needed(Share(), (8, 8)).tolist() == list(expected)


def test_an_array_is_put_from_the_rows_that_are_given():
    mesh = make_mesh(MeshConfig(data=4))
    whole = np.arange(24).reshape(8, 3).astype(np.int32)
    array = processes.put(whole, NamedSharding(mesh, P("data")), rows=np.arange(8), length=8)
    assert (processes.whole(array) == whole).all()
    assert [shard.data.shape for shard in array.addressable_shards] == [(2, 3)] * 4
    with pytest.raises(AssertionError):
        processes.put(whole[:7], NamedSharding(mesh, P("data")), rows=np.arange(7), length=8)
