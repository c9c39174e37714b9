"""Runs that skip steps, or go back to a checkpoint and past batches, because a detector speaks.

What the detector speaks about is planted in it, since these runs have nothing wrong: it alarms at some batches of the order, by
their CRC.
"""

import dataclasses
import functools
import importlib
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ConfigError, WatchConfig
from jaxlm.contract import ContractError, InputError
from jaxlm.data import batch, batch_crc
from jaxlm.parallel import make_mesh, processes
from jaxlm.run import Layout, Run, audit
from jaxlm.train import fit, rollback
from jaxlm.train.alarms import Alarms
from jaxlm.train.replaying import batch_of, recorded
from jaxlm.train.state import initial_state, put_batch
from jaxlm.train.step import train_step
from jaxlm.train.take_back import copied, take_back
from jaxlm.watch import ChainedLog, record_of
from jaxlm.watch.detect import BUDGETS, OF_EVENTS
from jaxlm.watch.detect.alarms import alarm as alarm_of
from tests.conftest import tiny_config

detectors = importlib.import_module("jaxlm.watch.detect.bank")
STEPS = 12


def quiet(line):
    pass


def watching(**watch):
    cfg = tiny_config()
    keep = dataclasses.replace(cfg.checkpoint, keep_last=3)
    return dataclasses.replace(cfg, watch=WatchConfig(print_every=1000, **watch), checkpoint=keep)


BACK, SKIP = watching(rollback_at="nonfinite"), watching(skip_at="nonfinite")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run without anything wrong, with its checkpoints of 4, 8 and 12 steps."""
    return fit(watching(), out=tmp_path_factory.mktemp("runs") / "base", say=quiet).path


@pytest.fixture
def halted(base, tmp_path):
    """The run as it was after 8 steps."""
    path = tmp_path / "run"
    shutil.copytree(base, path)
    shutil.rmtree(path / "checkpoints" / f"{STEPS:08d}")
    return path


def crcs(run, *indices):
    cfg = run.config
    order = {"seed": cfg.data.order_seed, "batch_size": cfg.train.batch_size, "context_length": cfg.model.context_length}
    return [batch_crc(batch(run.data.train, step=index, **order)) for index in indices]


def plant(monkeypatch, run, *indices):
    """Let a detector alarm at these batches of the order."""
    wrong = set(crcs(run, *indices))

    def observe(state, record, expected):
        found = record.get("batch_crc") in wrong
        return state, [alarm_of("nonfinite", record, "planted", expected="another batch", found="this one")] * found

    monkeypatch.setitem(detectors.DETECTORS, "nonfinite", detectors.Detector(lambda: None, observe))


@pytest.fixture
def bad(base, monkeypatch):
    """`bad(9, ...)`: let a detector alarm at these batches of the order."""
    return functools.partial(plant, monkeypatch, Run.load(base))


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


def broken(path):
    return [finding for finding in audit(path) if not finding.kept]


def require_equal(run, other):
    assert run.layout.telemetry.read_bytes() == other.layout.telemetry.read_bytes()
    assert run.checkpoint.facts == other.checkpoint.facts
    assert run.checkpoints.steps() == other.checkpoints.steps()


# ---- back ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def went_back(halted, bad):
    """The run of 8 steps, gone on with, and from step 10 back to 8 and past two batches."""
    bad(9)
    return fit(BACK, out=halted, say=quiet)


def test_a_rollback_is_a_resume_from_the_checkpoint_with_the_batches_past(went_back, base, tmp_path):
    (event,) = events(went_back, "rollback")
    assert {name: event[name] for name in ("step", "to", "detector", "past", "removed")} == {
        "step": 10, "to": 8, "detector": "nonfinite", "past": 2, "removed": {},
    }  # fmt: skip
    records = went_back.telemetry()
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["batch_crc"] for record in records] == crcs(went_back, *range(8), *range(10, 14))
    assert went_back.checkpoint.facts["data_cursor"] == 14
    undone = [json.loads(line) for line in (went_back.path / event["undone"]).read_text().splitlines()]
    assert [record["step"] for record in undone] == [9, 10]
    assert undone == [
        {**json.loads(line)} for line in (base / "telemetry.jsonl").read_text().splitlines()[8:10]
    ]  # what the run without an alarm did
    assert not events(went_back, "recompiled")
    assert broken(went_back.path) == []

    resumed = tmp_path / "resumed"
    shutil.copytree(base, resumed)
    shutil.rmtree(resumed / "checkpoints" / f"{STEPS:08d}")
    with ChainedLog(resumed / "events.jsonl") as log:
        log.append({name: value for name, value in event.items() if name != "chain"})
    require_equal(went_back, fit(watching(), out=resumed, say=quiet))


def test_a_run_that_went_back_goes_on_with_its_batches(went_back, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(went_back.path, copy)
    shutil.rmtree(copy / "checkpoints" / f"{STEPS:08d}")
    require_equal(fit(BACK, out=copy, say=quiet), went_back)


def test_replay_takes_each_step_with_the_batches_that_it_had(went_back):
    undone = recorded(went_back, 10)
    assert undone.differing is None
    assert (undone.batch.tokens == batch(went_back.data.train, step=9, seed=0, batch_size=4, context_length=32).tokens).all()
    left = recorded(went_back, 12)
    assert left.differing is None
    assert (left.batch.tokens == batch_of(went_back, 11).tokens).all()
    assert batch_crc(batch_of(went_back, 11)) == went_back.telemetry()[11]["batch_crc"]


def test_what_a_rollback_left_is_checked(went_back):
    path = went_back.path / events(went_back, "rollback")[0]["undone"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0", b"1", 1))
    assert [finding.artifact for finding in broken(went_back.path)] == [str(path)]
    path.unlink()
    assert [finding.found for finding in broken(went_back.path)] == ["no such file"]


def test_a_run_whose_rollback_is_lost_is_refused(went_back):
    lines = went_back.layout.events.read_bytes().splitlines(keepends=True)
    before = next(place for place, line in enumerate(lines) if b'"rollback"' in line)
    went_back.layout.events.write_bytes(b"".join(lines[:before]))
    assert any("data cursor is 12" in str(finding.expected) for finding in broken(went_back.path))
    with pytest.raises(ContractError, match="data cursor is 12, found 14"):
        fit(watching(), out=went_back.path, say=quiet)
    assert went_back.checkpoints.steps()[-1] == STEPS  # and nothing was removed


OTHERS = ("keep_lines", "remove_newer", "cut_telemetry", "restore")
STAGES = ["commit", *(pytest.param(stage, marks=pytest.mark.slow) for stage in OTHERS)]


@pytest.fixture(scope="module")
def far_back(base, tmp_path_factory):
    """A run of 8 steps whose checkpoint of 8 steps is not good, and where the alarm of step 10 leads: to 4, past 6 batches."""
    begun, done = (tmp_path_factory.mktemp("runs") / name for name in ("begun", "done"))
    shutil.copytree(base, begun)
    shutil.rmtree(begun / "checkpoints" / f"{STEPS:08d}")
    lines = (begun / "events.jsonl").read_bytes().splitlines(keepends=True)
    end = next(place for place, line in enumerate(lines) if b'"save", ' in line and b'"step": 12' in line)
    (begun / "events.jsonl").write_bytes(b"".join(lines[:end]))
    with ChainedLog(begun / "events.jsonl") as log:
        log.append({"event": "alarm", "step": 7, "detector": "nonfinite"})
    shutil.copytree(begun, done)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, Run.load(base), 9)
        fit(BACK, out=done, say=quiet)
    return begun, done


def test_a_checkpoint_with_an_alarm_in_its_own_steps_is_removed(far_back):
    run = Run.load(far_back[1])
    assert list(events(run, "rollback")[-1]["removed"]) == ["8"]
    assert [record["batch_crc"] for record in run.telemetry()] == crcs(run, *range(4), *range(10, 18))
    assert broken(run.path) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_moment_of_a_rollback_changes_nothing(far_back, bad, stage, tmp_path, monkeypatch):
    begun, done = far_back
    bad(9)
    path = tmp_path / "killed"
    shutil.copytree(begun, path)
    real = getattr(rollback, stage)

    def killed(*args, **kwargs):
        real(*args, **kwargs)
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(rollback, stage, killed)
        with pytest.raises(SystemExit):
            fit(BACK, out=path, say=quiet)
    assert len(events(Run.load(path), "rollback")) == (stage != "keep_lines")
    if stage == "commit":
        assert Run.load(path).checkpoints.steps() == [4, 8]
        (finding,) = broken(path)
        assert "`jaxlm train` of the run removes it" in finding.remedy
    run = fit(BACK, out=path, say=quiet)
    require_equal(run, Run.load(done))
    assert len(events(run, "rollback")) == 1
    assert broken(path) == []


@pytest.mark.slow
def test_too_many_rollbacks_end_the_run(halted, bad):
    bad(*range(9, 30))
    cfg = watching(rollback_at="nonfinite", max_rollbacks=2)
    for _ in range(2):  # and a resume does not forget those that were
        with pytest.raises(ContractError, match=r"at most 2 rollbacks, --watch.max-rollbacks, found one more after 2"):
            fit(cfg, out=halted, say=quiet)
    found = events(Run.load(halted), "rollback")
    assert [(event["step"], event["to"]) for event in found] == [(10, 8), (9, 8)]
    assert Run.load(halted).history().index(8) == 11


def test_before_the_first_checkpoint_a_run_goes_back_to_its_beginning(base, bad, tmp_path):
    bad(1)
    run = fit(BACK, out=tmp_path / "run", say=quiet)
    (event,) = events(run, "rollback")
    assert (event["step"], event["to"]) == (2, 0)
    assert [record["batch_crc"] for record in run.telemetry()] == crcs(run, *range(2, 14))
    assert run.checkpoint.facts["data_cursor"] == 14
    assert broken(run.path) == []


# ---- skipped -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_that_a_detector_speaks_against_updates_nothing(base, bad, tmp_path):
    bad(4, 5)
    run = fit(SKIP, out=tmp_path / "run", say=quiet)
    records = {record["step"]: record for record in run.telemetry()}
    for step, row in ((5, 1), (6, 2)):
        assert records[step]["taken_back"] == "nonfinite"
        assert (records[step]["finite"], records[step]["skipped"], records[step]["update_norm"]) == (True, row, 0.0)
        assert records[step]["param_norm"] == pytest.approx(records[4]["param_norm"], rel=1e-6)
    assert records[7]["skipped"] == 0
    assert records[7]["lr"] == records[5]["lr"]  # the optimizer counts updates, not steps
    assert [record["batch_crc"] for record in run.telemetry()] == crcs(run, *range(12))
    assert [(event["step"], event["detector"]) for event in events(run, "skipped")] == [(5, "nonfinite"), (6, "nonfinite")]
    assert [event["step"] for event in events(run, "alarm")] == [5]  # and no other detector: no jump, no wrong rate
    assert broken(run.path) == []
    assert recorded(run, 8).differing is None

    copy = tmp_path / "again"
    shutil.copytree(run.path, copy)
    for step in (8, 12):
        shutil.rmtree(copy / "checkpoints" / f"{step:08d}")
    require_equal(fit(SKIP, out=copy, say=quiet), run)


def test_too_many_steps_in_a_row_end_the_run(base, bad, tmp_path):
    bad(1, 2)
    cfg = dataclasses.replace(SKIP, train=dataclasses.replace(SKIP.train, max_skipped=2))
    with pytest.raises(ContractError, match=r"2 steps in a row .* a detector speaks, found 2, the last one for nonfinite"):
        fit(cfg, out=tmp_path / "run", say=quiet)


def test_nothing_of_a_step_that_is_taken_back_is_left(base):
    cfg = Run.load(base).config
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        before = initial_state(cfg, mesh)
        kept = jax.tree.map(np.asarray, jax.tree.leaves(before.params) + jax.tree.leaves(before.opt_state))
        copy = copied(before)
        state, telemetry = train_step(before, put_batch(batch_of(Run.load(base), 0), cfg, mesh))
        spoilt = dataclasses.replace(
            state, params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params), skipped=jnp.int32(7)
        )
        back, telemetry = take_back(copy, spoilt, telemetry)
        found = jax.tree.map(np.asarray, jax.tree.leaves(back.params) + jax.tree.leaves(back.opt_state))
        assert all((old == new).all() for old, new in zip(kept, found, strict=True))
        assert (int(back.step), int(back.skipped)) == (1, 1)
        record = record_of(telemetry, labels_bytes=0, positions=128)
        assert (record["step"], record["finite"], record["skipped"], record["update_norm"]) == (1, True, 1, 0.0)
        assert np.isfinite(record["param_norm"])
        again, _ = train_step(back, put_batch(batch_of(Run.load(base), 1), cfg, mesh))
        assert int(again.skipped) == 0


# ---- names ---------------------------------------------------------------------------------------------------------


def test_names_of_detectors_are_checked(config, monkeypatch):
    def alarms(**watch):
        cfg = dataclasses.replace(config, watch=WatchConfig(**watch), model=dataclasses.replace(config.model, vocab_size=300))
        return Alarms(cfg, Layout(None), event=quiet, say=quiet)

    monkeypatch.setattr(Layout, "bundles", None)
    assert alarms(skip_at="nonfinite, grad_norm", rollback_at="loss_spike,validation_gap").skip_at == ("nonfinite", "grad_norm")
    for field in ("skip_at", "rollback_at"):
        for name in ("lossspike", *OF_EVENTS):
            with pytest.raises(InputError, match=f"--watch.{field.replace('_', '-')}: .* found {name}"):
                alarms(**{field: name})
    with pytest.raises(InputError, match="found validation_gap"):
        alarms(skip_at="validation_gap")
    for one, other in (("stop_at", "skip_at"), ("skip_at", "rollback_at"), ("stop_at", "rollback_at")):
        with pytest.raises(ConfigError, match=other.replace("_", "-")):
            WatchConfig(**{one: "loss_spike,nonfinite", other: "grad_norm, nonfinite"})
    monkeypatch.setattr(processes, "several", lambda: True)
    alarms(skip_at="nonfinite")
    with pytest.raises(InputError, match="expected a run of one process"):
        alarms(rollback_at="nonfinite")


def test_the_detectors_of_events_are_these():
    seen = set()
    state = detectors.DETECTORS["pace"].start()
    slow = [{"event": "pace", "step": step, "steps": 1, "seconds": 1.0, "waited": 0.9} for step in range(40)]
    slow += [{**event, "seconds": 100.0} for event in slow[:8]]
    for event in [*slow, {"event": "recompiled", "step": 9}]:
        state, found = detectors.DETECTORS["pace"].observe(state, event, SimpleNamespace())
        seen |= {alarm.detector for alarm in found}
    assert seen == OF_EVENTS < set(BUDGETS)
