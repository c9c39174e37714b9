"""Back to a checkpoint, and past the batches since, because a detector alarmed.

The stages stand in the order in which a kill may come between them. Until the event is on the disk nothing but a spare file is
there, and a run that is killed goes on as without the alarm, to the same alarm. From the event on its resume removes the newer
checkpoints and drops the telemetry after the one that is left, as this does: it goes on from there with the same batches.

It costs reading the checkpoint and the steps since. The batches that are come past are never trained on.
"""

from __future__ import annotations

from pathlib import Path

from jaxlm.contract import ContractError, FileRecord, write_atomic
from jaxlm.run.history import checkpoint_before
from jaxlm.run.lineage import first_step
from jaxlm.train.exports import sinks_of
from jaxlm.train.pace import Pace
from jaxlm.train.session import Session
from jaxlm.watch import Mark
from jaxlm.watch.detect import Alarm
from jaxlm.watch.sinks import START, lines_after, read_log


def roll_back(session: Session, alarm: Alarm) -> None:
    """Take a session back from the step of `alarm`, which is done and not saved, to the checkpoint before it that is good.

    Raises ContractError where `watch.max_rollbacks` were made already.
    """
    session.store.wait()
    _require_few(session, alarm)
    events = [record for record, _ in read_log(session.layout.events)]
    assert session.manifest is not None
    least = first_step(session.manifest)
    saved = [step for step in session.store.steps() if step >= least]
    to = checkpoint_before(events, step=alarm.step, detector=alarm.detector, saved=saved)
    if to < least:
        raise ContractError(
            alarm.detector,
            artifact=f"{session.layout.path}, step {alarm.step} ({alarm.what})",
            expected=f"a good checkpoint of step {least}, at which a change of the numbers was declared, or later",
            found=f"none among {', '.join(map(str, saved)) or 'none'}",
            remedy="Nobody goes back behind a declared change; start from the change again, in another directory.",
        )
    mark = Mark(**session.store.manifest(to).facts["telemetry"]) if to else Mark(0, START)
    undone = keep_lines(session, mark)
    commit(session, alarm, to, undone)
    remove_newer(session, to)
    cut_telemetry(session, mark)
    restore(session, to)


def _require_few(session: Session, alarm: Alarm) -> None:
    done, most = len(session.history.rollbacks), session.cfg.watch.max_rollbacks
    if done >= most:
        raise ContractError(
            alarm.detector,
            artifact=f"{session.layout.path}, step {alarm.step} ({alarm.what})",
            expected=f"at most {most} rollbacks, --watch.max-rollbacks",
            found=f"one more after {done}: expected {alarm.expected}, found {alarm.found}",
            remedy="Data or numbers are at fault, not single batches; `jaxlm watch` of the run shows what moved before.",
        )


def keep_lines(session: Session, mark: Mark) -> Path:
    """Write the lines of the telemetry after `mark`, which are about to be dropped, into a file of their own."""
    session.telemetry.sync()
    path = session.layout.undone(len(session.history.rollbacks) + 1)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, lines_after(session.layout.telemetry, mark))
    return path


def commit(session: Session, alarm: Alarm, to: int, undone: Path) -> None:
    """Log the rollback: from here on it has happened."""
    removed = {str(step): session.store.manifest(step).fingerprint for step in session.store.steps() if step > to}
    session.event(
        "rollback",
        step=alarm.step,
        to=to,
        detector=alarm.detector,
        past=alarm.step - to,
        undone=undone.relative_to(session.layout.path).as_posix(),
        sha256=FileRecord.of(undone).sha256,
        removed=removed,
    )
    session.events.sync()
    words = f"from step {alarm.step} to {to}, past {alarm.step - to} batches, by {alarm.detector}"
    session.alarms.say(f"ROLLBACK {words}; the telemetry of what is undone is in {undone}")


def remove_newer(session: Session, to: int) -> None:
    """Remove the checkpoints after `to`, newest first."""
    for step in reversed([step for step in session.store.committed() if step > to]):
        session.store.remove(step)


def cut_telemetry(session: Session, mark: Mark) -> None:
    """Let the telemetry, and whatever else shows the figures, go on from `mark`."""
    session.telemetry.cut(mark)
    for sink in session.sinks:
        sink.close()
    session.sinks = sinks_of(session.cfg, session.layout, step=mark.lines, durable=session.store.latest)


def restore(session: Session, to: int) -> None:
    """The state and the detectors as they were after `to` steps; the step that follows is computed as after a resume."""
    del session.state  # both do not fit
    session.state, _ = session.standing()
    session.alarms.go_back(to)
    session.guard.go_back()
    session.pace = Pace(session.cfg.watch.pace_every, session.event)
