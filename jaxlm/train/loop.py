"""The loop on the host: batch, step, telemetry; now and then a validation and a checkpoint.

It does no arithmetic that enters the numbers: those are in the step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch, Prefetcher
from jaxlm.parallel import processes
from jaxlm.train.probes import Probe, require, run_probes
from jaxlm.train.probes_forward import batch_is_pure
from jaxlm.train.probes_order import order
from jaxlm.train.rollback import roll_back
from jaxlm.train.rows import BatchFacts, require_computed
from jaxlm.train.samples import sample
from jaxlm.train.session import Session
from jaxlm.train.take_back import copied, take_back
from jaxlm.train.validate import Validation, require_validation, validate
from jaxlm.watch import Progress, Telemetry, duration, number, record_of
from jaxlm.watch.detect import Alarm


def train(session: Session) -> None:
    """Train a session from its state's step to the last one, or until it is asked to stop.

    The watchdog of the session must run already, and run on until the store has ended its last save.
    """
    cfg, step = session.cfg, int(session.state.step)
    if step >= cfg.train.steps:
        session.say(f"{session.layout.path} has its {cfg.train.steps} steps; nothing is left to train")
        return
    session.event("start", step=step, environment=session.environment, differing=session.differing)
    if session.relaid is not None:
        session.event("mesh", step=step, **session.relaid)
    watchdog = session.watchdog
    with session.stop:
        watchdog.at("the probes")
        session.require_same_batches()
        probes = probe(session)
        if session.manifest is None:
            session.manifest = session.promise(probes)
        stream = None if processes.primary() else open(os.devnull, "w")
        progress = Progress(steps=cfg.train.steps, tokens_per_step=cfg.tokens_per_step, watch=cfg.watch, stream=stream)
        session.stop.reached(step)
        with progress:
            session.alarms.say = progress.note
            began, goes_on = time.monotonic(), True
            while goes_on:
                goes_on = _steps(session, int(session.state.step), progress)
            done = int(session.state.step)
            watchdog.at("the save at the end")
            session.store.wait()
            if session.saved != done:
                session.save(done, None)
                session.store.wait()
    session.event("end", step=done, seconds=time.monotonic() - began, signal=session.stop.signal and session.stop.signal.name)
    if session.stop.signal is not None:
        session.say(f"stopped at step {done}, saved; `jaxlm train {session.layout.path}` goes on")


def probe(session: Session) -> dict[str, Probe]:
    """Run every static probe on the state that is about to be trained; raise at the first that fails.

    In a cluster all processes run them alike, each on the whole of the first batch.
    """
    began, step = time.monotonic(), int(session.state.step)
    session.say("probes     compiling and running, before the first step")
    first = session.batch(step)
    session.check(first, step)
    where = session.layout.path
    rows = session.parts.data.train.rows(session.cfg.model.context_length)
    results = [
        require(batch_is_pure(session.batch, step), artifact=where),
        require(order(session.first_ids, rows=rows, batch_size=session.cfg.train.batch_size), artifact=where),
    ]
    for result in run_probes(session.cfg, session.mesh, session.state.params, first, fresh=step == 0):
        results.append(require(result, artifact=where))
    seconds = time.monotonic() - began
    session.say(f"probes     {len(results)} passed in {duration(seconds)}")
    session.event("probes", step=step, seconds=seconds, results={p.name: p.fact() for p in results})
    return {p.name: p for p in results}


def _steps(session: Session, step: int, progress: Progress) -> bool:
    """The steps from `step` on, to the end of the run or until it is asked to stop; True where a rollback ended them, after
    which the batches are others."""
    cfg = session.cfg
    session.watchdog.at("the comparison with the checkpoint")
    session.require_as_saved()
    progress.start(step)
    with Prefetcher(session.share, start=step, stop=cfg.train.steps, depth=cfg.data.prefetch) as batches:
        asked = time.monotonic()
        for step, made in batches:
            alarm = _step(session, step, made, progress, waited=time.monotonic() - asked)
            asked = time.monotonic()
            if alarm is not None:
                break
            if session.stop.reached(step + 1):
                return False
        else:
            return False
    session.watchdog.at("the rollback from step", step + 1)
    roll_back(session, alarm)
    return True


def _step(session: Session, step: int, made: Batch, progress: Progress, *, waited: float) -> Alarm | None:
    """Step number `step` + 1, with its record, validation and checkpoint; an alarm for which the run shall go back, in which
    case nothing is saved."""
    cfg, began = session.cfg, time.monotonic()
    # Two kinds: each compiles a program of its own the first time.
    session.watchdog.at("step computed twice" if session.guard.twice(step + 1) else "step", step + 1)
    session.check(made, step)
    session.require_fed(made, step)
    facts = session.facts(made, step)
    before, checkpoint = session.alarms.began(session.state), session.saved
    copy = copied(session.state) if session.alarms.skip_at else None
    session.state, telemetry = session.guard.step(session.state, session.put(made), step + 1)
    where = f"{session.layout.path}, step {step + 1}"
    require_computed(facts, content=telemetry.content, labels=telemetry.labels, artifact=where)
    record = _record(telemetry, facts, cfg)
    against = session.alarms.against(record)
    if copy is not None and against:
        session.state, telemetry = take_back(copy, session.state, telemetry)
        record = _record(telemetry, facts, cfg) | {"taken_back": ", ".join(sorted({alarm.detector for alarm in against}))}
    step += 1
    session.pace.step(step, seconds=time.monotonic() - began, waited=waited)
    last = step == cfg.train.steps
    validation = _validate(session, step, progress) if last or step % cfg.eval.every == 0 else None
    if validation is not None:
        record["validation"] = {k: number(v) if isinstance(v, float) else v for k, v in validation.figures().items()}
    session.record(record)
    progress.step(record)
    alarm = session.alarms.step(
        record,
        batch=made,
        state=session.state,
        began=before,
        parents=session.parents,
        checkpoint=checkpoint,
        against=against,
    )
    if record["skipped"]:
        _skipped(session, record)
    if alarm is not None:
        return alarm
    session.guard.after(session.state, record)
    session.store.poll()
    if last or step % cfg.checkpoint.every == 0:
        session.watchdog.at("the save of step", step)
        session.save(step, validation)
    return None


def _record(telemetry: Telemetry, facts: BatchFacts, cfg: RunConfig) -> dict[str, Any]:
    record = record_of(telemetry, labels_bytes=facts.bytes, positions=cfg.tokens_per_step)
    return record | {"batch_crc": facts.crc, "repeated_rows": facts.repeated, "epoch": facts.epoch}


def _skipped(session: Session, record: Mapping[str, Any]) -> None:
    """Log a step that updated nothing. Raises ContractError where there are too many in a row."""
    most, step = session.cfg.train.max_skipped, record["step"]
    detector = record.get("taken_back", "")
    session.event("skipped", step=step, nonfinite=record["nonfinite"], detector=detector)
    if record["skipped"] >= most:
        raise ContractError(
            "step",
            artifact=f"{session.layout.telemetry} line {step}",
            expected=f"fewer than {most} steps in a row that are skipped, as something is not finite or a detector speaks",
            found=f"{record['skipped']}, the last one for {detector}"
            if detector
            else f"{record['skipped']}, the last one in {record['nonfinite']}",
            remedy=f"The last durable step is {session.store.latest()}; look at the telemetry, lower --optim.lr.",
        )


def _validate(session: Session, step: int, progress: Progress) -> Validation:
    began = time.monotonic()
    session.watchdog.at("the validation of step", step)
    with session.guard.phase("validation", step):
        validation = validate(session.state.params, session.parts, session.mesh)
        where = f"{session.layout.path}, validation of step {step}"
        require_validation(validation, session.state.params, session.parts, session.mesh, artifact=where)
    session.event("validation", step=step, seconds=time.monotonic() - began, **validation.figures())
    progress.note(f"step {step}: validation loss {validation.loss:.4f}, {validation.bits_per_byte:.4f} bits per byte")
    sample(session, step, note=progress.note)
    return validation
