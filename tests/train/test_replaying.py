"""A step of a finished run again: from a checkpoint, figure for figure; and what the verbs say of it."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from jaxlm.cli.main import main
from jaxlm.contract import InputError
from jaxlm.run import Run
from jaxlm.train import replaying
from jaxlm.train.replaying import Compared, batch_of, compare_step, recorded, step_to_replay
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


def test_where_no_checkpoint_lies_before_it_a_step_is_computed_again_from_the_beginning(finished):
    said = []
    found = recorded(Run.load(finished), 3, say=said.append)
    assert said == [
        "step 3 begins 2 steps after the initial state, which are computed again, since no checkpoint lies before it"
    ]
    assert (int(found.state.step), found.differing, found.origin) == (2, None, "the initial state")
    assert compare_step(found).kept


def test_the_beginning_of_a_run_with_other_numbers_is_not_where_a_step_comes_from(finished, monkeypatch):
    run, other = Run.load(finished), SimpleNamespace(manifest=SimpleNamespace(fingerprint="another"))
    monkeypatch.setattr(Run, "at", lambda self, step: self if step > 2 else other)
    with pytest.raises(InputError, match=r"between the declared change and step 3, found none; it has those of 8, 12"):
        recorded(run, 3)


# ---- the step itself ---------------------------------------------------------------------------------------------


def test_a_healthy_step_has_the_figures_that_the_telemetry_holds(finished, capsys):
    record = Run.load(finished).telemetry()[10]
    compared = compare_step(recorded(Run.load(finished), 11))
    assert (compared.kept, compared.differing, compared.unlike) == (True, (), ())
    assert compared.recorded == {name: record[name] for name in ("loss", "grad_norm", "param_norm", "batch_crc")}
    assert main(["replay", str(finished), "--step", "11"]) == 0
    said = capsys.readouterr().out
    assert f"\nas recorded: loss {record['loss']:.9g}, grad_norm " in said
    assert "\nall values of " in said
    assert "not reproduced" not in said


def test_a_step_of_a_state_that_was_corrupted_is_not_as_recorded(finished, capsys, monkeypatch):
    records = Run.load(finished).telemetry()
    records[10] |= {"loss": records[10]["loss"] * 1.5, "param_norm": "nan"}
    monkeypatch.setattr(Run, "telemetry", lambda self: records)
    assert main(["replay", str(finished), "--step", "11", "--json"]) == 1
    said = capsys.readouterr()
    body = json.loads(said.out)
    found = body["as_recorded"]
    assert (found["kept"], found["differing"], body["differing"]) == (False, ["loss", "param_norm"], None)
    assert found["figures"]["param_norm"]["recorded"] == "nan"
    assert f"\n  loss: {records[10]['loss']:.9g} recorded, {records[10]['loss'] / 1.5:.9g} now\n" in said.err
    assert "the state that the run had in this step was another one than the checkpoint of step 8" in said.err


def test_another_state_gives_other_figures_and_another_batch_is_told_from_it(finished):
    found = recorded(Run.load(finished), 11)
    params = jax.tree.map(lambda leaf: leaf * 3, found.state.params)
    corrupted = compare_step(found._replace(state=dataclasses.replace(found.state, params=params)))
    assert (corrupted.kept, corrupted.differing) == (False, ("loss", "grad_norm", "param_norm"))
    assert "the state that the run had" in corrupted.words(found.origin)
    fed = compare_step(found._replace(batch=batch_of(Run.load(finished), 3)))
    assert "batch_crc" in fed.differing
    assert "the batch that the run had" in fed.words(found.origin)
    assert compare_step(found).kept  # the state is still there


@pytest.mark.parametrize(
    ("found", "unlike", "kept", "words"),
    [
        (1.0000001, (), False, "with the same one, the state or batch that the run had in this step was another one"),
        (1.0000001, ("jax: saved 1, now 2",), True, "as recorded but for rounding:\n  loss: 1 recorded, 1.0000001 now\n"),
        (1.1, ("jax: saved 1, now 2",), False, "was another one than there, the data and the seeds give, or the code was"),
        ("nan", ("jax: saved 1, now 2",), False, "loss: 1 recorded, nan now\n  equal bits are not promised: jax: saved 1"),
        (1.0, ("jax: saved 1, now 2",), True, "as recorded: loss 1"),
    ],
)
def test_rounding_explains_a_figure_where_equal_bits_are_not_promised_and_nowhere_else(found, unlike, kept, words):
    compared = Compared({"loss": 1.0}, {"loss": found}, unlike)
    assert compared.kept is kept
    assert words in compared.words("there")


def test_an_environment_that_is_another_one_is_told(finished, monkeypatch):
    real = replaying.environment_of
    monkeypatch.setattr(replaying, "environment_of", lambda *a, **k: {**real(*a, **k), "jax": "0.0.1", "deterministic": False})
    unlike = recorded(Run.load(finished), 9).unlike
    assert any(line.startswith("jax: saved ") for line in unlike)
    assert "sums of this device come in any order" in unlike


# ---- what watch says ---------------------------------------------------------------------------------------------


def test_a_finished_run_has_no_alarm_and_watch_says_so(finished, capsys):
    assert main(["watch", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": 12, "alarms": [], "spikes": [], "broken": []}
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
