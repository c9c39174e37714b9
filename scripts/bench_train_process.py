"""One party of scripts/bench_train.py in a process of its own: it makes its model, then takes so many steps as each line asks.

    bench_train_process.py NAME MODEL   with MODEL the fields of a ModelConfig, batch_size and precision, as JSON

NAME is jaxlm, "torch eager" or "torch compile". Every line on the standard input is a number of steps, and after it, for jaxlm,
"bare" for steps without telemetry, on the device and on the host; every answer is a line of JSON: seconds by the clock and of
the processors for them, and the last loss.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig


def config(model: dict[str, Any]) -> RunConfig:
    """The run of a benchmark: the model's fields, batch_size and precision as given, the rest by default."""
    fields = dict(model)
    train = {name: fields.pop(name) for name in ("batch_size", "precision", "remat", "loss_chunk") if name in fields}
    return RunConfig(model=ModelConfig(**fields), train=TrainConfig(**train), optim=OptimConfig())


def ids_of(cfg: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels, int32 [B, T]: uniform, the same for all."""
    shape = (cfg.train.batch_size, cfg.model.context_length + 1)
    ids = np.random.default_rng(0).integers(0, cfg.model.vocab_size, shape, dtype=np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def batch_of(cfg: RunConfig) -> Any:
    """The same as a batch: one document a row, every label supervised."""
    from jaxlm.data import Batch

    tokens, labels = ids_of(cfg)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape).copy()
    return Batch(tokens, labels, np.ones(tokens.shape, np.bool_), np.ones(tokens.shape, np.int32), positions)


def jaxlm_steps(cfg: RunConfig) -> Callable[[int, bool], float]:
    """What a run does for a step: `train_step` under a mesh, its telemetry read, shown to the detectors, and written to a log.

    bare: only what the next step needs. Both ways go on with one state in one process: two would differ by more than the cost.
    """
    from jaxlm.train.host_memory import keep_memory

    keep_memory()  # as `jaxlm train` does
    import jax

    from jaxlm.parallel import make_mesh
    from jaxlm.train import train_step
    from jaxlm.train.state import initial_state, put_batch
    from jaxlm.watch import ChainedLog, record_of
    from jaxlm.watch.detect import bank, expected_of, observe

    mesh = make_mesh(cfg.mesh)
    # What nobody reads is not computed: the compiler leaves it out.
    bare_step = jax.jit(lambda state, batch: train_step(state, batch)[0], donate_argnums=0)
    with jax.set_mesh(mesh):
        state, batch = initial_state(cfg, mesh), put_batch(batch_of(cfg), cfg, mesh)
    detectors, expected = bank(), expected_of(cfg)
    log = ChainedLog(Path(tempfile.mkdtemp()) / "telemetry.jsonl")

    def steps(count: int, bare: bool) -> float:
        nonlocal state, detectors
        loss = float("nan")
        with jax.set_mesh(mesh):
            for _ in range(count):
                if bare:
                    state = bare_step(state, batch)
                    continue
                state, telemetry = train_step(state, batch)
                record = record_of(telemetry, labels_bytes=4 * batch.labels.size, positions=batch.labels.size)
                log.append(record)
                detectors, _ = observe(detectors, record, expected)
                loss = record["loss"]
            jax.block_until_ready(state)
        return loss

    return steps


def torch_steps(cfg: RunConfig, compiled: bool) -> Callable[[int, bool], float]:
    """The equivalent in PyTorch."""
    import torch
    from bench_train_torch import Trainer

    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(os.cpu_count() or 1)
    made = Trainer(cfg.model, cfg.optim, precision=cfg.train.precision, compiled=compiled, device="cuda" if cuda else "cpu")
    tokens, labels = ids_of(cfg)

    def steps(count: int, bare: bool) -> float:
        for _ in range(count):
            loss = made.step(tokens, labels)
        return float(loss)

    return steps


def main() -> None:
    """Answer until the input ends."""
    name, cfg = sys.argv[1], config(json.loads(sys.argv[2]))
    began = time.perf_counter()
    steps = jaxlm_steps(cfg) if name == "jaxlm" else torch_steps(cfg, name == "torch compile")
    loss = steps(2, False)
    print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)
    if name == "jaxlm":
        steps(2, True)
    for line in sys.stdin:
        count, *bare = line.split()
        began, busy = time.perf_counter(), time.process_time()
        loss = steps(int(count), bool(bare))
        found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy, "loss": loss}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
