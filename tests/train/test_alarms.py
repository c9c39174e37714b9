"""Alarms of a run: said, kept with a bundle, and where asked for the end of it."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.config.schema import WatchConfig
from jaxlm.contract import ContractError, InputError
from jaxlm.run import Layout
from jaxlm.train.alarms import Alarms
from jaxlm.train.exports import sinks_of
from jaxlm.train.pace import Pace

RECORD = {"step": 5, "loss": "nan", "finite": False, "skipped": 1, "nonfinite": "the update", "grad_norm": 1.0}


@pytest.fixture
def watched(config, tmp_path):
    """`make(**watch)`: alarms of a run whose config is that of the tiny run, with the lines and events they wrote."""

    def make(**watch):
        lines, events = [], []
        cfg = dataclasses.replace(config, watch=WatchConfig(**watch), model=dataclasses.replace(config.model, vocab_size=300))
        alarms = Alarms(cfg, Layout(tmp_path), event=lambda name, **fields: events.append((name, fields)), say=lines.append)
        monitor = SimpleNamespace(alarms=alarms, lines=lines, events=events)
        return monitor

    return make


def step(alarms, record):
    batch = SimpleNamespace(_asdict=lambda: {"tokens": np.zeros((1, 2), np.int32)})
    alarms.step(record, batch=batch, state=None, began={}, parents={"run": "d" * 64}, checkpoint=4)


def test_an_alarm_is_a_line_an_event_and_a_bundle(watched, tmp_path):
    found = watched()
    step(found.alarms, RECORD)
    assert found.lines[0].startswith("ALARM step 5: nonfinite")
    (name, fields), *_ = found.events
    assert (name, fields["detector"], fields["bundle"]) == ("alarm", "nonfinite", "bundles/00000005")
    assert (tmp_path / fields["bundle"] / "manifest.json").is_file()


def test_a_detector_ends_the_run_where_it_is_named(watched):
    found = watched(stop_at="loss_spike, nonfinite", bundles=0)
    with pytest.raises(ContractError, match="nonfinite") as caught:
        step(found.alarms, RECORD)
    assert "jaxlm replay" in caught.value.remedy
    assert found.events[0][1]["bundle"] is None
    with pytest.raises(InputError, match="found lossspike"):
        watched(stop_at="lossspike")


@pytest.mark.parametrize(
    ("watch", "action"),
    [
        ({}, "log"),
        ({"skip_at": "nonfinite"}, "skip"),
        ({"rollback_at": "nonfinite"}, "rollback"),
        ({"stop_at": "loss_spike"}, "log"),
    ],
)
def test_the_event_of_an_alarm_says_what_the_config_has_done_about_it(watched, watch, action):
    found = watched(bundles=0, **watch)
    step(found.alarms, RECORD)
    _, fields = found.events[0]
    assert (fields["action"], fields["advice"]) == (action, "skip")


def test_a_run_that_goes_on_knows_what_it_knew(watched):
    before, after, anew = watched(), watched(), watched()
    step(before.alarms, RECORD)
    after.alarms.go_on(json.loads(json.dumps(before.alarms.saved(), allow_nan=False)))
    step(after.alarms, {**RECORD, "step": 6})
    assert after.lines == []
    anew.alarms.go_on(None)
    step(anew.alarms, {**RECORD, "step": 6})
    assert len(anew.lines) == 1


def test_detectors_of_another_version_begin_anew_and_it_is_said(watched):
    found = watched()
    found.alarms.go_on({"states": {}, "last": {}, "warm": 0})
    assert "begin anew" in found.lines[0]
    step(found.alarms, RECORD)
    assert len(found.lines) == 2


def test_an_event_ends_the_run_as_a_step_does(watched):
    event = {"event": "recompiled", "step": 9, "phase": "step", "found": "another shape"}
    logged = watched()
    logged.alarms.event(event)
    assert logged.events[0][1]["detector"] == "recompilation"
    with pytest.raises(ContractError, match="another shape"):
        watched(stop_at="recompilation").alarms.event(event)


def test_the_pace_is_a_sum_over_steps_without_the_first(monkeypatch):
    events = []
    pace = Pace(2, lambda name, **fields: events.append({"event": name, **fields}))
    for number in range(1, 6):
        pace.step(number, seconds=float(number), waited=0.5)
    assert events == [
        {"event": "pace", "step": 3, "steps": 2, "seconds": 6.0, "waited": 1.0},
        {"event": "pace", "step": 5, "steps": 2, "seconds": 10.0, "waited": 1.0},
    ]


def test_figures_go_where_the_config_sends_them(config, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert sinks_of(config, Layout(tmp_path), step=0, durable=lambda: None) == []
    cfg = dataclasses.replace(config, watch=WatchConfig(metrics_port=port))
    (sink,) = sinks_of(cfg, Layout(tmp_path), step=0, durable=lambda: 3)
    assert sink.address[1] == port
    sink.close()
