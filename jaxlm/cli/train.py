"""Train a run, or go on with one.

  jaxlm train configs/tiny.py
      a new run in runs/tiny, or the rest of it
  jaxlm train configs/tiny.py --model.n-layers 4
      every field of the config can be set
  jaxlm train runs/tiny
      go on from the newest checkpoint
  jaxlm train runs/tiny/resolved.json
      the same run again, from nothing, beside the first (or the rest of it)

A run that has begun goes on with other numbers only where that is declared:

  jaxlm train runs/tiny --declare "batch size" --train.batch-size 64
      also "warm restart" (optim.*, train.steps; --optim.schedule-from is the
      step from which the schedule begins anew) and "mixture" (other shards,
      --data.path); "pause" and "mesh" change no number and tell the detectors

On several machines, or as several processes of one (scripts/ has
launchers), the same command runs in every process:

  jaxlm train configs/tiny.py --mesh.data 2 --mesh.rules dp \\
      --coordinator HOST:PORT --num-processes 2 --process-id 0
      and the same with --process-id 1; JAXLM_COORDINATOR, JAXLM_NUM_PROCESSES
      and JAXLM_PROCESS_ID say the same
  srun jaxlm train configs/tiny.py --mesh.data 2 --mesh.rules dp --distributed
      jax finds the cluster: TPU pods, Slurm, GKE, Open MPI

SIGTERM saves and ends with status 0; Ctrl-C saves and ends with status 3;
either, sent to one process, stops all of them. A process that loses another one
ends with status 4; one that is stuck (--watch.step-timeout) ends itself with 5.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
from pathlib import Path
from typing import NoReturn

from jaxlm.cli.failures import failure_of
from jaxlm.cli.output import Output
from jaxlm.config.load import config_fingerprint, load_config, read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, InputError

SECTIONS, CONFIG = (), ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm train`."""
    parser.add_argument("config", help="a config (.py), a run directory, or the resolved.json of a run")
    parser.add_argument("--out", help="the run directory; runs/NAME by default")
    parser.add_argument("--allow-older", action="store_true", help="where the newest checkpoint is damaged, take an older one")
    parser.add_argument("--declare", default="", metavar="CHANGE", help="go on with other numbers; what the change is called")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="answer Prometheus there: --watch.metrics-port")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, for a run of several processes")
    parser.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    parser.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument("--distributed", action="store_true", help="several processes, in a cluster that jax finds by itself")


def run(args: argparse.Namespace, out: Output) -> int:
    """Train."""
    from jaxlm.train.host_memory import keep_memory

    keep_memory()  # before other threads start
    path = Path(args.config)
    where: Path | None = Path(args.out) if args.out else None
    original: Path | None = None
    if path.is_dir():
        if not (path / "resolved.json").is_file():
            raise InputError(f"{path}: expected a run directory (with resolved.json) or a config, found a directory of neither")
        where = where or path
        config = load_config(path / "resolved.json", args.overrides)
    else:
        config = load_config(path, args.overrides)
        if path.suffix == ".json" and where is None:
            original, where = path.parent, beside(path.parent, config)
            out.line(f"the run of {path} again, in {where}")
    joined = join(args, config)
    if args.metrics_port is not None:
        watch = dataclasses.replace(config.watch, metrics_port=args.metrics_port)
        config = dataclasses.replace(config, watch=watch)
    try:
        return train(config, where, original, out, allow_older=args.allow_older, declare=args.declare)
    except Exception as error:
        if joined:
            leave_with(error)
        raise


def join(args: argparse.Namespace, config: RunConfig) -> bool:
    """Join the other processes that options or variables name; returns whether there are any."""
    from jaxlm.parallel import processes

    names = ("coordinator", "num_processes", "process_id", "distributed")
    processes.start(processes.cluster_of(**{name: getattr(args, name) for name in names}), heartbeat=config.watch.heartbeat)
    return processes.several()


def leave_with(error: Exception) -> NoReturn:
    """End this process of several with what `error` means: others may be gone, and jax would wait for them."""
    import traceback

    from jaxlm.parallel.leaving import leave

    if (failure := failure_of(error, "train")) is None:
        leave(1, f"error: {type(error).__name__}", before="".join(traceback.format_exception(error)))
    leave(failure.status, f"error: {' '.join(failure.message.split())}")


def beside(path: Path, config: RunConfig) -> Path:
    """Of path-2, path-3, ...: the last that `config` was begun in, and not ended; else the first that is free."""
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    names = re.compile(re.escape(path.name) + r"-([2-9]|[1-9]\d+)", re.ASCII)
    numbers = [int(found[1]) for there in path.parent.iterdir() if (found := names.fullmatch(there.name))]
    for number in sorted(numbers, reverse=True):
        if _unfinished(begun := path.with_name(f"{path.name}-{number}"), config):
            return begun
    return path.with_name(f"{path.name}-{next(free for free in itertools.count(2) if free not in numbers)}")


def _unfinished(path: Path, config: RunConfig) -> bool:
    """Whether `path` is a run of `config` that no process is training and that has steps left."""
    from jaxlm.checkpoint import CheckpointStore
    from jaxlm.run import Layout

    layout = Layout(path)
    try:
        same = config_fingerprint(read_resolved(layout.resolved)) == config_fingerprint(config)
    except (InputError, ContractError, OSError):
        return False
    if not same or layout.in_use():
        return False
    with CheckpointStore(layout.checkpoints) as store:
        return (store.latest() or 0) < config.train.steps


def train(
    config: RunConfig,
    where: Path | None,
    original: Path | None,
    out: Output,
    *,
    allow_older: bool = False,
    declare: str = "",
) -> int:
    """Train `config` in `where`; with `original`, its tokenizer and data must come out the same."""
    from jaxlm.parallel import processes
    from jaxlm.run import Run
    from jaxlm.train import fit

    like = Run.load(original) if original is not None and (original / "manifest.json").is_file() else None
    done = fit(config, out=where, allow_older=allow_older, like=like, declare=declare, say=out.line)
    if not processes.primary():
        return 0
    records = done.telemetry()
    last = records[-1] if records else {}
    out.line(f"{done.path}: step {done.step} of {config.train.steps}")
    out.result(
        {
            "run": str(done.path),
            "step": done.step,
            "steps": config.train.steps,
            "loss": last.get("loss"),
            "validation": last.get("validation"),
            "fingerprint": done.manifest.fingerprint,
        }
    )
    return 0
