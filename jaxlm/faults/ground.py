"""The small run on which faults are planted: real text, a real tokenizer, the real loop.

For every seed there is one that was stopped at step `STOPPED` and one that went on to its end. Both are left as they are;
faults are planted on copies.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxlm.config.ablations import changed
from jaxlm.config.load import config_fingerprint
from jaxlm.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    WatchConfig,
)
from jaxlm.contract import write_atomic
from jaxlm.data import read_documents
from jaxlm.evaluate import evaluate
from jaxlm.faults.fault import STEPS, STOPPED, Patch
from jaxlm.faults.planting import patched
from jaxlm.parallel import make_mesh
from jaxlm.run import Run
from jaxlm.train import fit
from jaxlm.train.prepare import Parts
from jaxlm.train.validate import validate

NOTHING: Mapping[str, Any] = MappingProxyType({})
TEXT, LEAST = 1_500_000, 24  # bytes


def small(seed: int = 0, changes: Mapping[str, Any] = NOTHING) -> RunConfig:
    """The config of the small run, but for its text. changes: other values, by dotted name."""
    cfg = RunConfig(
        name="small",
        tokenizer=TokenizerConfig(vocab_size=512, train_bytes=300_000),
        data=DataConfig(val_fraction=0.06, order_seed=seed),
        model=ModelConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, context_length=64, vocab_multiple=96),
        optim=OptimConfig(lr=4e-3, warmup_steps=20),
        train=TrainConfig(steps=STEPS, batch_size=4, grad_accum=2, seed=seed),
        watch=WatchConfig(live=False, print_every=1 << 30, pace_every=8, samples_every=0),
        checkpoint=CheckpointConfig(every=70, keep_last=3, keep_best=0, asynchronous=False),
        eval=EvalConfig(every=40, batches=8, batch_size=8, resamples=20, max_documents=40),
    )
    return changed(cfg, changes)


@dataclass(frozen=True)
class Ground:
    """Below `folder` the runs of one seed: `half`, stopped, and `whole`, which went on."""

    folder: Path
    seed: int

    @property
    def half(self) -> Path:
        """The run that was stopped."""
        return self.folder / f"ground-{self.seed}-half"

    @property
    def whole(self) -> Path:
        """The run that went to its end, and was evaluated."""
        return self.folder / f"ground-{self.seed}"

    @property
    def text(self) -> Path:
        """The documents: paragraphs of the standard library, so that most rows hold the end of one."""
        return self.folder / "documents.jsonl"

    def config(self, changes: Mapping[str, Any] = NOTHING) -> RunConfig:
        """The config of a run on these documents."""
        return small(self.seed, {"data.source": (str(self.text.absolute()),), **changes})

    def prepare(self) -> None:
        """Make both runs, where they are not there yet."""
        if (self.folder / f"ground-{self.seed}.json").is_file():
            return
        if not self.text.is_file():
            write_atomic(self.text, paragraphs())
        for path in (self.half, self.whole):
            shutil.rmtree(path, ignore_errors=True)
        with patched([stopped_at(STOPPED)]):
            quiet_fit(self.config(), self.half)
        shutil.copytree(self.half, self.whole)
        quiet_fit(self.config(), self.whole)
        run = Run.load(self.whole)
        facts = {"evaluated": evaluate(run).result["loss"], "loss": true_loss(run, run), "losses": losses(run)}
        write_atomic(self.folder / f"ground-{self.seed}.json", json.dumps(facts).encode())

    def facts(self) -> dict[str, Any]:
        """evaluated: the loss that `evaluate` gave. loss: by `true_loss`. losses: of every step."""
        found: dict[str, Any] = json.loads((self.folder / f"ground-{self.seed}.json").read_text())
        return found

    def clean(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Loss and losses, as of `facts`, of a clean run with another config, which is trained where it was not yet."""
        if same_numbers(changes):
            return self.facts()
        cfg = self.config({**self.parts(), **changes})
        name = f"ground-{self.seed}-{config_fingerprint(small(changes=changes))[7:15]}"
        file, path = self.folder / f"{name}.json", self.folder / f"{name}-{os.getpid()}"
        if not file.is_file():
            try:
                run = quiet_fit(cfg, path)
                found = {"loss": true_loss(run, Run.load(self.whole)), "losses": losses(run)}
            finally:
                shutil.rmtree(path, ignore_errors=True)
            write_atomic(file, json.dumps(found).encode())
        known: dict[str, Any] = json.loads(file.read_text())
        return known

    def parts(self) -> dict[str, Any]:
        """The overrides with which another run takes tokenizer and shards from here."""
        return {"tokenizer.path": str(self.whole / "tokenizer"), "data.path": str(self.whole / "data")}


def same_numbers(changes: Mapping[str, Any]) -> bool:
    """Whether the small run comes out the same with these values."""
    return config_fingerprint(small(changes=changes)) == config_fingerprint(small())


def stopped_at(last: int) -> Patch:
    """What lets a run stop after `last` steps, as a signal does."""
    return Patch("jaxlm.train.stop:StopRequest.reached", lambda real: lambda self, step: real(self, step) or step == last)


def paragraphs() -> bytes:
    """`TEXT` bytes of the standard library as JSON lines, cut at empty lines into documents of `LEAST` bytes or more."""
    lines: list[str] = []
    for document in read_documents(DataConfig(max_bytes=TEXT)):
        held = ""
        for part in document.text.split("\n\n"):
            held += part + "\n"
            if len(held) >= LEAST:
                lines.append(json.dumps({"text": held}))
                held = ""
    return ("\n".join(lines) + "\n").encode()


def quiet_fit(cfg: RunConfig, path: Path) -> Run:
    """`fit`, which says nothing."""
    return fit(cfg, out=path, say=lambda line: None)


def true_loss(run: Run, clean: Run) -> float:
    """Nats per label that a run's parameters give on the validation split of a clean one, by the code as it is; NaN where the
    run has no checkpoint.

    Of a run that a fault was planted in: what came out of it, whatever its own tokenizer, shards or loss say of it.
    """
    if not run.checkpoints.committed():
        return math.nan
    cfg = dataclasses.replace(run.config, mesh=clean.config.mesh)
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.numpy.asarray, run.params)
        return float(validate(params, Parts(cfg, clean.tokenizer, clean.data), mesh).loss)


def losses(run: Run) -> list[float | None]:
    """The loss of every step; None where it is not finite."""
    found = np.asarray([float(record["loss"]) for record in run.telemetry()], np.float64)
    return [float(f"{loss:.4f}") if math.isfinite(loss) else None for loss in found]
