"""One fault on one seed: what saw it and when, what a public rule would have seen, and what it would have cost.

The fault is planted twice. Once everything watches, and the first that speaks ends the run. Once nothing does, and the run goes
to its end; what came out is then measured by the code as it is.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.config.ablations import changed
from jaxlm.contract import ContractError, InputError
from jaxlm.data import batches
from jaxlm.evaluate import evaluate
from jaxlm.faults.fault import BEGINS, Fault, Patch
from jaxlm.faults.ground import Ground, losses, quiet_fit, same_numbers, true_loss
from jaxlm.faults.planting import patched, planted
from jaxlm.infer import Engine, Sampling
from jaxlm.run import Run, audit
from jaxlm.train.replaying import recorded, replay_step
from jaxlm.watch import read_log
from jaxlm.watch.detect import BUDGETS
from jaxlm.watch.detect.public_rules import observe, public_rules

PROMPTS = ("def main(", "The statement", "é € 😀 are")


@dataclass(frozen=True)
class Seen:
    """by: the contract, probe or detector. stage: "open", "probe", "step", "check", "evaluate" or "generate". step: of the run,
    from 1, None before the first. layer, operation: where in the model, as far as it is told. words: the whole message."""

    by: str
    stage: str
    step: int | None
    words: str
    layer: int | None = None
    operation: str = ""


@dataclass(frozen=True)
class Trial:
    """What came of a fault on one seed. right: it was seen in time, and by what should see it. public: the public rules that
    fired, with their step. damage: nats per label by which the run is worse than the clean one of its config and seed, where
    nothing watches; None where there is nothing to measure, infinite where nothing that can be used came out. losses, clean: of
    every step of that run, and of the clean one. refused: why there is no such run, where even then nothing could go on."""

    fault: str
    seed: int
    seen: Seen | None
    right: bool
    public: dict[str, int] = field(default_factory=dict)
    damage: float | None = None
    losses: list[float | None] = field(default_factory=list)
    clean: list[float | None] = field(default_factory=list)
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        damage = self.damage if self.damage is None or math.isfinite(self.damage) else "inf"
        return {**asdict(self), "damage": damage}


def trial(fault: Fault, ground: Ground, work: Path) -> Trial:
    """Plant a fault on a seed. work: a directory for what is made on the way; nothing is left in it."""
    path = work / f"{fault.name}-{ground.seed}"
    with _silence():
        try:
            seen = _watched(fault, ground, _fresh(path, fault, ground))
            unwatched = _unwatched(fault, ground, _fresh(path, fault, ground))
        finally:
            shutil.rmtree(path, ignore_errors=True)
    return Trial(fault.name, ground.seed, seen, _right(fault, seen), **unwatched)


def _right(fault: Fault, seen: Seen | None) -> bool:
    if seen is None or seen.by not in fault.seen_by:
        return False
    if fault.layer_index is not None and seen.layer != fault.layer_index:
        return False
    if fault.operation and seen.operation != fault.operation:
        return False
    if seen.step is None:
        return True
    begins = fault.at or 1
    return begins <= seen.step <= begins + fault.within


def _fresh(path: Path, fault: Fault, ground: Ground) -> Path:
    """The directory that a fault's scene begins with: none, or a copy of a clean run."""
    shutil.rmtree(path, ignore_errors=True)
    if _resumed(fault):
        shutil.copytree(ground.half, path)
    elif fault.scene in ("check", "evaluate", "generate"):
        shutil.copytree(ground.whole, path)
    return path


def _resumed(fault: Fault) -> bool:
    """Whether the scene is a run that goes on: as it is for a fault that begins only then, in a run of the same numbers."""
    later = fault.scene == "train" and fault.at is not None and fault.at >= BEGINS
    return fault.scene == "resume" or (later and same_numbers(fault.config))


def _config(fault: Fault, ground: Ground) -> Any:
    parts = {} if _resumed(fault) else ground.parts()
    if fault.scene == "build":
        parts = {"tokenizer.path": parts["tokenizer.path"]}
    return ground.config({**parts, **fault.config})


# ---- everything watches ----------------------------------------------------------------------------------------------


def _watched(fault: Fault, ground: Ground, path: Path) -> Seen | None:
    cfg = changed(_config(fault, ground), {"watch.stop_at": ",".join(BUDGETS)})
    before = _lines(path)
    try:
        with planted(fault, path):
            return _played(fault, cfg, path)
    except ContractError as error:
        seen = _seen(error, path, before)
    except InputError as error:
        seen = Seen("input", "open", None, str(error))
    except Exception as error:  # what a fault makes of code that did not expect it; loud, but no check of ours
        return Seen("crash", "open", None, "".join(traceback.format_exception(error)))
    if fault.operation and seen.by == "nonfinite" and seen.step is not None:
        return _localised(fault, path, seen)
    return seen


def _played(fault: Fault, cfg: Any, path: Path) -> Seen | None:
    """Go through the fault's scene; return what `jaxlm check` finds, raise what breaks on the way."""
    if fault.scene in ("build", "train", "resume"):
        quiet_fit(cfg, path)
    if fault.scene != "generate":
        for finding in audit(path):
            if not finding.kept:
                return Seen(finding.contract, "check", None, str(finding.error()))
    if fault.scene != "check":
        run = Run.load(path)
        if fault.scene != "generate":
            _at("evaluate", lambda: evaluate(run))
        if fault.scene in ("generate", "resume"):
            _at("generate", lambda: generated(run))
    return None


def _at(stage: str, play: Any) -> Any:
    try:
        return play()
    except ContractError as error:
        error.stage = stage  # type: ignore[attr-defined]
        raise


def generated(run: Run) -> list[str]:
    """Short continuations, greedy and drawn, of prompts of different length."""
    engine = Engine.of(run)
    found = engine.generate(PROMPTS, max_new_tokens=8, sampling=Sampling(temperature=0.0))
    return [generation.text for generation in found]


def _seen(error: ContractError, path: Path, before: int) -> Seen:
    stage, by = getattr(error, "stage", ""), error.contract
    if stage:
        return Seen(by.removeprefix("probe "), stage, None, str(error))
    if by.startswith("probe "):
        return Seen(by.removeprefix("probe "), "probe", None, str(error))
    alarms = [event for event in _events(path) if event["event"] == "alarm" and event["detector"] == by]
    if by in BUDGETS and alarms:
        last = alarms[-1]
        return Seen(by, "step", int(last["step"]), str(error), last["layer"], str(last["what"]))
    done = _lines(path)
    if done > before or (done and f"step {done + 1}" in str(error.artifact)):
        return Seen(by, "step", done + (0 if f"step {done}" in str(error.artifact) else 1), str(error))
    return Seen(by, "open", None, str(error))


def _lines(path: Path) -> int:
    log = path / "telemetry.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


def _events(path: Path) -> list[dict[str, Any]]:
    log = path / "events.jsonl"
    return [event for event, _ in read_log(log)] if log.is_file() else []


def _localised(fault: Fault, path: Path, seen: Seen) -> Seen:
    """With what `jaxlm replay` says of the step: the first equation that made a value which is not finite."""
    assert seen.step is not None
    with planted(fault, path, replayed=True):
        result = replay_step(recorded(Run.load(path), seen.step))
    origin = next(iter(result.origins), None)
    if origin is None:
        return seen
    layer = origin.layer if origin.layer is not None else seen.layer
    return Seen(seen.by, seen.stage, seen.step, f"{seen.words}\n{result.words()}", layer, str(origin.primitive))


# ---- nothing watches -------------------------------------------------------------------------------------------------


def _nothing(*_: Any, **__: Any) -> None:
    return None


UNWATCHED = (
    Patch("jaxlm.tokenizer.train:require_learned", lambda real: _nothing),
    Patch("jaxlm.data.sources:require_as_it_stands", lambda real: _nothing),
    Patch("jaxlm.data.shards:require_document", lambda real: _nothing),
    Patch("jaxlm.data.shards:_require_all", lambda real: _nothing),
    Patch("jaxlm.data.batches:_with_successors", lambda real: lambda *wanted: batches.rows_of(*wanted)),
    Patch("jaxlm.train.prepare:require_whole_epoch", lambda real: _nothing),
    Patch("jaxlm.train.prepare:require_agreement", lambda real: lambda *_: []),
    Patch("jaxlm.train.session:require_restored", lambda real: _nothing),
    Patch("jaxlm.train.session:Session.require_same_batches", lambda real: _nothing),
    Patch("jaxlm.train.loop:probe", lambda real: lambda session: {}),
    Patch("jaxlm.train.session:Session.require_fed", lambda real: _nothing),
    Patch("jaxlm.train.loop:require_computed", lambda real: _nothing),
    Patch("jaxlm.train.loop:require_validation", lambda real: _nothing),
    Patch("jaxlm.checkpoint.saving:require_norms", lambda real: _nothing),
    Patch("jaxlm.checkpoint.store:require_kept", lambda real: _nothing),
    Patch("jaxlm.train.session:check_batch", lambda real: _nothing),
    Patch("jaxlm.train.session:check_supervised", lambda real: _nothing),
    Patch("jaxlm.train.guard:require_equal_replicas", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:run_probes", lambda real: lambda *_, **__: iter(())),
    Patch("jaxlm.evaluate.bits:require_restored", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:check_batch", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:require_placed", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:Coverage.require", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:require_counts", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:require_alone", lambda real: _nothing),
    Patch("jaxlm.evaluate.bits:require_figures", lambda real: _nothing),
)
"""What checks a run, taken away. Fingerprints and digests of files stay: nothing opens without them."""

UNJUDGED = {
    "watch.recompute_every": 0,
    "watch.bundles": 0,
    "data.max_mojibake": 1.0,
    "data.max_overlap": 1.0,
    "data.max_repeated": 1.0,
}


def _unwatched(fault: Fault, ground: Ground, path: Path) -> dict[str, Any]:
    """The fields of a `Trial` that come of the run that nothing watches."""
    if fault.scene in ("check", "generate"):
        return {}
    cfg = changed(_config(fault, ground), UNJUDGED)
    try:
        with patched(UNWATCHED), planted(fault, path):
            if fault.scene == "evaluate":
                return {"damage": float(evaluate(Run.load(path)).result["loss"]) - ground.facts()["evaluated"]}
            quiet_fit(cfg, path)
    except Exception as error:  # what cannot be silenced: an artifact that does not open, say
        found: dict[str, Any] = {"refused": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ContractError, InputError):  # where it ended before there was a run
            found["public"] = _public(Run.load(path))
        return found
    run = Run.load(path)
    clean = ground.clean(fault.config)
    damage = true_loss(run, Run.load(ground.whole)) - clean["loss"]
    curves = {"losses": losses(run), "clean": clean["losses"]}
    return {"public": _public(run), "damage": damage if math.isfinite(damage) else math.inf, **curves}


def _public(run: Run) -> dict[str, int]:
    """The first step in which each public rule fires."""
    state = public_rules()
    fired: dict[str, int] = {}
    for record in run.telemetry():
        state, rules = observe(state, record)
        for rule in rules:
            fired.setdefault(rule, int(record["step"]))
    return fired


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Progress, warnings and the lines of libraries go nowhere."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
