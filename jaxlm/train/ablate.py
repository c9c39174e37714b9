"""A base and its ablations, trained one after the other as ordinary runs, and what came of each.

A run that is there is not trained again, one that was cut off goes on. A run that a probe refuses, that a detector ends or that
skips too many steps is a result like any other: FOLDER/stopped.json says why it ended.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config.ablations import BASE, Changes, at_tokens
from jaxlm.config.load import config_fingerprint, read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, write_atomic
from jaxlm.data import Batch
from jaxlm.model import param_specs
from jaxlm.model.spec import count_params
from jaxlm.run import Layout
from jaxlm.train.fit import fit
from jaxlm.train.prepare import Say
from jaxlm.train.state import TrainState
from jaxlm.train.step import train_step
from jaxlm.watch import read_log
from jaxlm.watch.detect import BUDGETS

STOPPED, BUDGET = "stopped.json", "budget.json"
ENDS = frozenset({"step", "loss_scale", *BUDGETS})  # contracts that a run breaks by what it computes; so does every probe
RISE, WINDOWS = 0.5, 50  # nats above its lowest level that a loss stays; a level is the mean of a 50th of the run
STARTING = 20.0  # seconds of a small run before its first step: compiling and probes, on two CPU cores
TIMED = 8  # steps that are timed for a budget in minutes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run. losses: of every step, NaN and infinities among them. validations: (step, loss). alarms: by
    detector. stopped: why it ended before its last step, "" where it did not. diverged: the step after which its loss was never
    again near its lowest, or the first one not finite; None where there is none."""

    name: str
    changes: Changes
    path: Path
    config: RunConfig
    parameters: int
    losses: list[float]
    validations: list[tuple[int, float]]
    alarms: Mapping[str, int]
    stopped: str
    diverged: int | None

    @property
    def validation(self) -> float | None:
        """The last validation loss."""
        return self.validations[-1][1] if self.validations else None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        return bool(self.stopped) or len(self.losses) >= self.config.train.steps

    def as_json(self) -> dict[str, Any]:
        """Everything but the losses, as JSON values."""
        last = self.validation
        return {
            "name": self.name,
            "changes": dict(self.changes),
            "run": str(self.path),
            "parameters": self.parameters,
            "step": len(self.losses),
            "steps": self.config.train.steps,
            "tokens": len(self.losses) * self.config.tokens_per_step,
            "validation_loss": last if last is not None and math.isfinite(last) else None,
            "alarms": dict(self.alarms),
            "diverged": self.diverged,
            "stopped": self.stopped or None,
        }


def ablate(
    base: RunConfig, made: Mapping[str, Changes], folder: Path, *, tokens: int, say: Say, each: Callable[[Outcome], None]
) -> list[Outcome]:
    """Train every ablation of `made` (the base first) with about `tokens` tokens; each in FOLDER/NAME, on the base's data.

    say: takes the lines of the runs. each: takes an outcome as soon as it is there. Ends early, with those that there are,
    where SIGTERM stopped a run. Raises what `fit` raises, but for what is a result.
    """
    done: list[Outcome] = []
    for name, changes in made.items():
        cfg = dataclasses.replace(at_tokens(base, changes, tokens), name=name)
        if name != BASE:
            cfg = _on_data_of(folder / BASE, base, cfg)
        path = folder / name
        outcome = outcome_of(name, changes, path)
        if outcome is None or not outcome.ended or not _same(outcome.config, cfg):
            _train(name, cfg, path, say)
            outcome = outcome_of(name, changes, path)
        assert outcome is not None
        done.append(outcome)
        each(outcome)
        if not outcome.ended:
            break
    return done


def _on_data_of(first: Path, base: RunConfig, cfg: RunConfig) -> RunConfig:
    """The config with the tokenizer and the shards of the base's run, where the ablation changes neither."""
    if (cfg.tokenizer, cfg.data) != (base.tokenizer, base.data):
        return cfg
    layout = Layout(first)
    return dataclasses.replace(
        cfg,
        tokenizer=dataclasses.replace(cfg.tokenizer, path=str(layout.tokenizer)),
        data=dataclasses.replace(cfg.data, path=str(layout.data(base))),
    )


def _same(there: RunConfig, cfg: RunConfig) -> bool:
    """Whether a run's config, which knows its vocabulary, is that of an ablation."""
    model = dataclasses.replace(cfg.model, vocab_size=there.model.vocab_size)
    source = tuple(there.data.source)
    return config_fingerprint(there) == config_fingerprint(
        dataclasses.replace(cfg, model=model, data=dataclasses.replace(cfg.data, source=source))
    )


def _train(name: str, cfg: RunConfig, path: Path, say: Say) -> None:
    try:
        fit(cfg, out=path, say=say)
    except ContractError as error:
        if error.contract not in ENDS and not error.contract.startswith("probe "):
            raise
        resolved = Layout(path).resolved
        if not resolved.is_file():
            raise
        found = _stopped(path.parent) | {
            name: {
                "fingerprint": config_fingerprint(read_resolved(resolved)),
                "why": f"{error.contract}: expected {error.expected}, found {error.found}",
            }
        }
        write_atomic(path.parent / STOPPED, (json.dumps(found, indent=1) + "\n").encode())
    finally:
        jax.clear_caches()  # programs of one config serve no other


def _stopped(folder: Path) -> dict[str, Any]:
    path = folder / STOPPED
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def outcome_of(name: str, changes: Changes, path: Path) -> Outcome | None:
    """What came of a run, read from its logs; None where none has begun."""
    layout = Layout(path)
    if not layout.resolved.is_file():
        return None
    cfg = read_resolved(layout.resolved)
    records, events = (
        [record for record, _ in read_log(log)] if log.is_file() else [] for log in (layout.telemetry, layout.events)
    )
    alarms: dict[str, int] = {}
    for event in events:
        if event["event"] == "alarm":
            alarms[event["detector"]] = alarms.get(event["detector"], 0) + 1
    stopped = _stopped(path.parent).get(name, {})
    losses = [float(record["loss"]) for record in records]
    return Outcome(
        name=name,
        changes=changes,
        path=path,
        config=cfg,
        parameters=count_params(param_specs(cfg.model)),
        losses=losses,
        validations=[(r["step"], float(r["validation"]["loss"])) for r in records if "validation" in r],
        alarms=alarms,
        stopped=stopped["why"] if stopped.get("fingerprint") == config_fingerprint(cfg) else "",
        diverged=diverged_after(losses, steps=cfg.train.steps),
    )


def diverged_after(losses: list[float], *, steps: int) -> int | None:
    """The step after which the loss left its lowest level for good: from then to the end it was never again within 0.5 nats of
    it, or it was not finite at last. None where it did not, and in a run that has just begun.

    A level is the mean of as many steps as a 50th of the run has, so that batches of one row are judged as large ones are.
    """
    width = max(1, steps // WINDOWS)
    levels = [float(np.mean(losses[at : at + width])) for at in range(0, len(losses) - width + 1, width)]
    finite = [level if math.isfinite(level) else math.inf for level in levels]
    if not finite or min(finite) == math.inf:
        return 0 if finite else None
    lowest = min(finite)
    last = max(index for index, level in enumerate(finite) if level <= lowest + RISE)
    return None if last == len(finite) - 1 else (last + 1) * width


# ---- a budget in minutes -----------------------------------------------------------------------------------------


def tokens_in(base: RunConfig, minutes: float, *, runs: int, folder: Path) -> int:
    """Tokens of a run with which `runs` runs like the base take about `minutes` on this machine, from the time of a few steps.

    The first answer is kept in FOLDER/budget.json, and given again for the same base and minutes, so that runs go on as they
    began. Short batches cost more than the base's, and are not reckoned with.
    """
    path, asked = folder / BUDGET, [config_fingerprint(base), minutes, runs]
    kept = json.loads(path.read_bytes()) if path.is_file() else {}
    if kept.get("asked") == asked:
        return int(kept["tokens"])
    seconds = max(1.0, 60.0 * minutes / runs - STARTING)
    steps = max(2, int(seconds / _seconds_of_a_step(base)))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps({"asked": asked, "tokens": steps * base.tokens_per_step}) + "\n").encode())
    return steps * base.tokens_per_step


def _seconds_of_a_step(base: RunConfig) -> float:
    """The median of a few steps on ids that mean nothing."""
    vocab = base.model.vocab_size or base.tokenizer.vocab_size
    cfg = dataclasses.replace(base, model=dataclasses.replace(base.model, vocab_size=vocab))
    state, seconds = TrainState.create(cfg), []
    for batch in _batches(cfg):
        began = time.monotonic()
        state, telemetry = train_step(state, batch)
        jax.block_until_ready(telemetry)
        seconds.append(time.monotonic() - began)
    return float(np.median(seconds[1:]))


def _batches(cfg: RunConfig) -> Iterator[Batch]:
    shape = (cfg.train.batch_size, cfg.model.context_length)
    rng, ones = np.random.default_rng(0), np.ones(shape, np.int32)
    for _ in range(TIMED):
        ids = rng.integers(0, cfg.model.vocab_size, shape, dtype=np.int32)
        at = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
        yield Batch(ids, np.roll(ids, -1, axis=1), ones.astype(bool), ones, at)
