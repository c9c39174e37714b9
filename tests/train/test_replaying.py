"""A step of a finished run again: from a checkpoint, figure for figure; and what the verbs say of it."""

import json

import pytest

from jaxlm.cli.main import main
from jaxlm.contract import InputError
from jaxlm.run import Run
from jaxlm.train.replaying import batch_of, recorded, step_to_replay
from jaxlm.watch import ChainedLog
from jaxlm.watch.detect import bank, expected_of, loaded, observe, saved


def test_the_state_before_a_step_is_computed_again_from_the_checkpoint_before_it(finished):
    run = Run.load(finished)
    found = recorded(run, 11)
    assert int(found.state.step) == 10
    assert found.differing is None
    assert found.origin.endswith("step 8")
    assert (found.batch.tokens == batch_of(run, 10).tokens).all()


def test_other_figures_than_the_telemetry_holds_are_said(finished, monkeypatch):
    records = Run.load(finished).telemetry()
    records[8]["loss"] += 1e-3
    monkeypatch.setattr(Run, "telemetry", lambda self: records)
    assert recorded(Run.load(finished), 11).differing == 9


def test_a_clean_run_has_no_step_to_look_at(finished):
    with pytest.raises(InputError, match="name a step with --step"):
        step_to_replay(Run.load(finished))
    for step in (0, 13):
        with pytest.raises(InputError, match=f"one of the 12 steps .* found {step}"):
            recorded(Run.load(finished), step)
    with pytest.raises(InputError, match="a checkpoint before step 3"):
        recorded(Run.load(finished), 3)


def test_a_finished_run_has_no_alarm_and_watch_says_so(finished, capsys):
    assert main(["watch", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": 12, "alarms": [], "spikes": []}
    assert [event for event in Run.load(finished).events() if event["event"] == "alarm"] == []


def test_watch_reads_the_events_as_well(run_copy, capsys):
    with ChainedLog(run_copy / "events.jsonl") as log:
        log.append({"event": "recompiled", "step": 7, "phase": "step", "found": "another shape"})
    assert main(["watch", str(run_copy), "--json"]) == 0
    (alarm,) = json.loads(capsys.readouterr().out)["alarms"]
    assert (alarm["detector"], alarm["step"]) == ("recompilation", 7)


def test_watch_shows_alarms_that_the_logs_no_longer_give_and_none_twice(run_copy, capsys):
    told = {"layer": None, "expected": "less", "found": "more", "value": 7.0, "threshold": "nan", "bundle": None}
    with ChainedLog(run_copy / "events.jsonl") as log:
        log.append({"event": "recompiled", "step": 7, "phase": "step", "found": "another shape"})
        log.append({"event": "alarm", "detector": "recompilation", "step": 7, "what": "step", **told, "action": "log"})
        log.append(
            {"event": "alarm", "detector": "update_ratio", "step": 6, "what": "w", **told, "action": "skip", "advice": "log"}
        )
    assert main(["watch", str(run_copy), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["alarms"]
    assert (first["detector"], first["step"], first["advice"], first["threshold"]) == ("update_ratio", 6, "log", "nan")
    assert (second["detector"], second["step"]) == ("recompilation", 7)


def test_a_checkpoint_holds_what_the_detectors_know(finished):
    found = Run.load(finished).checkpoint.provenance["detectors"]
    assert saved(loaded(found)) == found
    state = bank()
    for record in Run.load(finished).telemetry():
        state, _ = observe(state, record, expected_of(Run.load(finished).config))
    assert saved(state)["states"]["exact"] == found["states"]["exact"]
