"""A run that goes on with other numbers, which was declared: what it may change, what is checked all the same, what is left."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from jaxlm.config.load import fields_that_differ, read_resolved
from jaxlm.config.schema import OptimConfig
from jaxlm.contract import ContractError, InputError, Manifest
from jaxlm.data import batch, batch_crc, build_shards
from jaxlm.optim.reference import learning_rates
from jaxlm.run import History, Layout, Run, audit
from jaxlm.run.lineage import changes_of, parents_at
from jaxlm.tokenizer import Tokenizer
from jaxlm.train import declared, fit
from jaxlm.train.declared import ABOUT, require_declared
from jaxlm.train.replaying import batch_of, recorded
from jaxlm.watch.detect import CHANGES
from tests.conftest import tiny_config


def quiet(line):
    pass


def replaced(cfg, section, **fields):
    return dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **fields)})


@pytest.fixture
def halted(run_copy):
    """The finished run as it was four steps before its end, after 8 of 12."""
    shutil.rmtree(run_copy / "checkpoints" / "00000012")
    shutil.rmtree(run_copy / "evaluations")
    return run_copy


def broken(path):
    return [finding for finding in audit(path) if not finding.kept]


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


# ---- what a change is about ------------------------------------------------------------------------------------------


def test_every_change_says_what_it_is_about():
    assert set(ABOUT) == CHANGES


def test_a_change_of_other_fields_is_refused(halted, config):
    layout, recorded_ = Layout(halted), read_resolved(halted / "resolved.json")
    require = functools.partial(require_declared, recorded=recorded_, layout=layout)
    slower, wider = replaced(recorded_, "optim", lr=1e-4), replaced(recorded_, "train", batch_size=8)
    require(slower, what="warm restart")
    require(replaced(recorded_, "train", steps=20), what="warm restart")
    require(wider, what="batch size")
    require(recorded_, what="pause")
    for cfg, what, found in (
        (slower, "batch size", r"--optim.lr: 0.003 there, 0.0001 here"),
        (wider, "warm restart", r"changes of --optim, --train.steps, .* --train.batch-size: 4 there, 8 here"),
        (replaced(slower, "train", seed=7), "warm restart", r"others: --train.seed: 0 there, 7 here$"),
        (slower, "pause", r"expected changes of no field"),
        (recorded_, "warm restart", r"found the same"),
        (recorded_, "mixture", r"--data.path: expected the shards"),
        (slower, "restart", r"--declare: expected one of warm restart"),
    ):
        with pytest.raises(InputError, match=found):
            require(cfg, what=what)
    (halted / "manifest.json").unlink()
    with pytest.raises(InputError, match="a run that has begun"):
        require(slower, what="warm restart")


def test_fields_that_differ_are_named_with_both_values(config):
    other = replaced(replaced(config, "optim", lr=1.0), "checkpoint", every=99)
    assert fields_that_differ(config, other) == {"optim.lr": [3e-3, 1.0]}


def declaration(step, fields=(), data="d", new_data="d"):
    return {"event": "declared", "step": step, "run": "r", "fields": dict(fields), "data": data, "new_data": new_data}


def test_the_order_goes_on_by_examples_and_begins_anew_in_other_shards():
    half = History.of([declaration(8, {"train.batch_size": [4, 8]})])
    assert [half.index(done) for done in (7, 8, 9)] == [7, 4, 5]
    assert [half.cursor(done) for done in (8, 9)] == [8, 5]
    odd = History.of([declaration(8, {"train.batch_size": [4, 6]})])
    assert odd.index(8) == 6  # of examples 36 on: 32 to 35 end no batch, and are passed over
    back = {"event": "rollback", "step": 10, "to": 8, "past": 2, "undone": "", "sha256": "", "removed": {}}
    assert History.of([back, declaration(8, {"train.batch_size": [4, 8]})]).index(8) == 5
    assert History.of([declaration(8, {"train.batch_size": [4, 8]}), back]).index(8) == 6
    other = History.of([declaration(8, new_data="e")])
    assert [other.index(done) for done in (7, 8, 9)] == [7, 0, 1]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(finished, tmp_path_factory):
    """The run of 8 steps, gone on with batches twice as large."""
    path = tmp_path_factory.mktemp("runs") / "larger"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "checkpoints" / "00000012")
    shutil.rmtree(path / "evaluations")
    cfg = replaced(tiny_config(), "train", batch_size=8)
    return fit(replaced(cfg, "checkpoint", keep_last=3), out=path, declare="batch size", say=quiet)


def test_a_run_goes_on_with_another_batch_size(larger, finished):
    original = Run.load(finished)
    (event,) = events(larger, "declared")
    assert (event["step"], event["what"], event["fields"]) == (8, "batch size", {"train.batch_size": [4, 8]})
    assert larger.config.train.batch_size == 8
    assert changes_of(larger.manifest)[0]["run"] == original.manifest.fingerprint
    records, before = larger.telemetry(), original.telemetry()
    assert records[:8] == before[:8]
    order = {"seed": 0, "batch_size": 8, "context_length": 32}
    wanted = [batch_crc(batch(larger.data.train, step=index, **order)) for index in range(4, 8)]
    assert [record["batch_crc"] for record in records[8:]] == wanted
    assert larger.checkpoint.facts["data_cursor"] == 8
    assert [event["detector"] for event in events(larger, "alarm")] == []
    assert broken(larger.path) == []


def test_each_checkpoint_names_the_run_that_it_was_made_in(larger, finished):
    steps = {step: larger.checkpoints.manifest(step).parents["run"] for step in larger.checkpoints.steps()}
    assert steps == {8: Run.load(finished).manifest.fingerprint, 12: larger.manifest.fingerprint}
    for step, print_ in steps.items():
        assert parents_at(larger.manifest, step)["run"] == print_
        assert Run.load(larger.path, step=step).checkpoint.facts["step"] == step
    assert larger.at(8).config.train.batch_size == 4
    assert larger.at(9) is larger


def test_steps_before_and_after_a_change_are_replayed_with_their_own_numbers(larger):
    for step in (8, 9, 12):
        assert batch_crc(batch_of(larger, step - 1)) == larger.telemetry()[step - 1]["batch_crc"]
    found = recorded(larger, 11)
    assert found.differing is None
    assert found.batch.tokens.shape == (8, 32)


def test_a_run_that_was_changed_goes_on_and_is_no_other(larger, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(larger.path, copy)
    shutil.rmtree(copy / "checkpoints" / "00000012")
    with pytest.raises(InputError, match=r"--train.batch-size: 8 there, 4 here"):
        fit(tiny_config(), out=copy, say=quiet)
    again = fit(larger.config, out=copy, say=quiet)
    assert again.layout.telemetry.read_bytes() == larger.layout.telemetry.read_bytes()
    assert again.checkpoint.facts == larger.checkpoint.facts
    assert again.checkpoint.provenance["detectors"] == larger.checkpoint.provenance["detectors"]


FAULTS = {
    "the manifest before": lambda path: (path / "before" / "00001" / "manifest.json").unlink(),
    "the config before": lambda path: (path / "before" / "00001" / "resolved.json").write_text("{}"),
    "the event": lambda path: _without(path / "events.jsonl", b'"declared"'),
    "the checkpoint's run": lambda path: _parent(path / "checkpoints" / "00000008", run="0" * 64),
    "the checkpoint's data": lambda path: _parent(path / "checkpoints" / "00000008", data="0" * 64),
    "a later run": lambda path: _parent(path / "checkpoints" / "00000008", run=Manifest.load(path).fingerprint),
}


def _without(log, word):
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: next(place for place, line in enumerate(lines) if word in line)]))


def _parent(path, **parents):
    manifest = Manifest.load(path)
    dataclasses.replace(manifest, parents={**manifest.parents, **parents}).save(path)


@pytest.mark.parametrize("kind", FAULTS)
def test_what_a_change_replaced_is_checked(larger, kind, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(larger.path, copy)
    FAULTS[kind](copy)
    assert broken(copy)


def test_nobody_goes_back_behind_a_change(larger, tmp_path):
    copy = tmp_path / "back"
    shutil.copytree(larger.path, copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ContractError, match="step 8 or later, at which a change of the numbers was declared, found step 0"):
        fit(larger.config, out=copy, say=quiet)


@pytest.mark.parametrize("stage", ["keep_replaced", "event", "replace"])
def test_a_change_that_was_cut_off_is_finished_or_has_not_happened(halted, larger, stage, monkeypatch):
    wanted = replaced(replaced(tiny_config(), "train", batch_size=8), "checkpoint", keep_last=3)
    with monkeypatch.context() as patch:
        if stage == "event":
            patch.setattr(declared, "replace", lambda *args: (_ for _ in ()).throw(SystemExit("killed")))
        else:
            real = getattr(declared, stage)

            def killed(*args):
                real(*args)
                raise SystemExit("killed")

            patch.setattr(declared, stage, killed)
        with pytest.raises(SystemExit):
            fit(wanted, out=halted, declare="batch size", say=quiet)
    before = Run.load(halted).config.train.batch_size if stage != "event" else 4
    assert before == (8 if stage == "replace" else 4)
    if stage == "event":
        assert broken(halted)
    again = tiny_config() if stage == "event" else wanted  # what the config on the disk says
    declare = "batch size" if stage == "keep_replaced" else ""
    monkeypatch.setattr("jaxlm.train.session.Session.save", _stop)
    with pytest.raises(KeyboardInterrupt):
        fit(again, out=halted, declare=declare, say=quiet)
    run = Run.load(halted)
    assert run.config.train.batch_size == 8
    assert run.manifest.fingerprint == larger.manifest.fingerprint
    assert len(events(run, "declared")) == 1
    assert broken(halted) == []


def _stop(self, step, validation):
    raise KeyboardInterrupt


def test_a_warm_restart_takes_the_new_schedule_and_alarms_at_nothing(halted):
    fields = {"lr": 1e-3, "warmup_steps": 3, "schedule_from": 8}
    cfg = replaced(replaced(tiny_config(steps=16), "optim", **fields), "checkpoint", every=8)
    run = fit(cfg, out=halted, declare="warm restart", say=quiet)
    records = run.telemetry()
    anew = OptimConfig(lr=1e-3, warmup_steps=3)
    assert [record["lr"] for record in records[8:]] == pytest.approx(learning_rates(anew, 8, np.arange(8)), rel=1e-5)
    assert records[7]["lr"] > records[8]["lr"] < records[10]["lr"] == pytest.approx(1e-3)
    assert len(records) == 16
    assert events(run, "alarm") == []
    assert broken(run.path) == []


def test_a_wrong_rate_after_a_warm_restart_is_seen():
    from jaxlm.watch.detect import Expected, bank, observe

    table = np.concatenate([np.full(8, 3e-3), np.full(8, 1e-3)])
    state = bank()
    for step in range(1, 9):
        state, found = observe(state, {"step": step, "lr": 3e-3}, Expected(lr=table))
        assert not found
    state, _ = observe(state, {**declaration(8, {"optim.lr": [3e-3, 1e-3]}), "what": "warm restart"}, Expected(lr=table))
    _, found = observe(state, {"step": 9, "lr": 1e-3}, Expected(lr=table))
    assert not found
    _, found = observe(state, {"step": 9, "lr": 3e-3}, Expected(lr=np.full(16, 1e-3)))
    assert [alarm.detector for alarm in found] == ["learning_rate"]


@pytest.mark.slow
def test_other_shards_of_the_same_tokenizer_are_a_mixture(halted, tmp_path):
    cfg = tiny_config()
    other = dataclasses.replace(cfg.data, max_bytes=150_000)
    build_shards(other, Tokenizer.load(halted / "tokenizer"), tmp_path / "shards")
    with pytest.raises(InputError, match="expected other shards"):
        fit(replaced(cfg, "data", path=str(halted / "data")), out=halted, declare="mixture", say=quiet)
    run = fit(replaced(cfg, "data", path=str(tmp_path / "shards")), out=halted, declare="mixture", say=quiet)
    order = {"seed": 0, "batch_size": 4, "context_length": 32}
    wanted = [batch_crc(batch(run.data.train, step=index, **order)) for index in range(4)]
    assert [record["batch_crc"] for record in run.telemetry()[8:]] == wanted
    assert run.checkpoints.manifest(8).parents["data"] == run.at(8).manifest.parents["data"] != run.manifest.parents["data"]
    assert batch_crc(batch_of(run, 7)) == run.telemetry()[7]["batch_crc"]
    assert broken(run.path) == []


def test_a_mistake_leaves_the_run_as_it_was(halted):
    before = {path.name: path.read_bytes() for path in halted.iterdir() if path.suffix == ".json"}
    for cfg, what, error in (
        (replaced(tiny_config(), "train", batch_size=4096), "batch size", r"--train.batch-size: expected at most"),
        (tiny_config(steps=8), "warm restart", r"--train.steps: expected more than the 8 steps"),
    ):
        with pytest.raises(InputError, match=error):
            fit(cfg, out=halted, declare=what, say=quiet)
    with pytest.raises(InputError, match="its newest checkpoint"):
        fit(tiny_config(steps=20), out=halted, declare="warm restart", allow_older=True, say=quiet)
    assert {path.name: path.read_bytes() for path in halted.iterdir() if path.suffix == ".json"} == before
    assert not (halted / "before").exists()
    assert broken(halted) == []


def test_a_pause_is_an_event_and_nothing_else(halted, finished):
    run = fit(tiny_config(), out=halted, declare="pause", say=quiet)
    assert [(event["step"], event["what"]) for event in events(run, "declared")] == [(8, "pause")]
    assert run.layout.telemetry.read_bytes() == (finished / "telemetry.jsonl").read_bytes()
    assert run.manifest.fingerprint == Run.load(finished).manifest.fingerprint
    assert json.loads((halted / "manifest.json").read_text()) == json.loads((finished / "manifest.json").read_text())
