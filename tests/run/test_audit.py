"""The walk along the chain: a finished run is kept, and every damage to it is broken by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlm.config.load import read_resolved, resolved_json
from jaxlm.contract import ContractError, InputError, Manifest, record_files
from jaxlm.data import open_shards
from jaxlm.run import audit
from jaxlm.tokenizer import Tokenizer


def files_below(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != ".lock")


def broken(path) -> list:
    return [finding for finding in audit(path) if not finding.kept]


def artifacts(path) -> str:
    return "\n".join(finding.artifact for finding in broken(path))


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory):
    """A copy of the finished run with one checkpoint; whoever damages it mends it."""
    made = Path(shutil.copytree(finished, tmp_path_factory.mktemp("copy") / "run"))
    shutil.rmtree(made / "checkpoints" / "00000008")
    return made


def evaluation_of(run: Path) -> Path:
    return next((run / "evaluations").iterdir())


def other_tokenizer(run: Path) -> Tokenizer:
    """Another tokenizer of the size of the run's."""
    mine = Tokenizer.load(run / "tokenizer")
    made = Tokenizer(mine.merges, ("<|end|>",), mine.pattern)
    assert made.vocab_size == mine.vocab_size
    return made


def resave(root: Path, **changes) -> Manifest:
    """Write a manifest anew, with everything recomputed."""
    made = dataclasses.replace(Manifest.load(root), files=record_files(root), **changes)
    made.save(root)
    return made


# ---- kept --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_kept_in_every_contract(finished):
    findings = audit(finished)
    assert all(finding.kept for finding in findings)
    contracts = {finding.contract for finding in findings}
    assert contracts == {"tokenizer", "data", "run", "model", "probe", "checkpoint", "telemetry", "evaluation"}
    held = {finding.artifact for finding in findings}
    for part in ("tokenizer", "data", "checkpoints/00000008", "checkpoints/00000012", "telemetry.jsonl", "events.jsonl"):
        assert str(finished / part) in held
    assert str(evaluation_of(finished)) in held


@pytest.mark.parametrize("part", ["tokenizer", "data", "checkpoints/00000012", "evaluations"])
def test_a_part_of_a_run_is_checked_alone_and_against_its_neighbours(finished, part, tmp_path, monkeypatch):
    path = finished / part if part != "evaluations" else evaluation_of(finished)
    inside = audit(path)
    assert all(finding.kept for finding in inside)
    assert len(inside) < len(audit(finished))
    alone = Path(shutil.copytree(path, tmp_path / "elsewhere" / path.name))
    outside = audit(alone)
    assert all(finding.kept for finding in outside)
    assert 0 < len(outside) < len(inside)
    monkeypatch.chdir(path)
    assert len(audit(".")) == len(inside)
    assert len(audit("manifest.json")) == len(inside)
    for file in files_below(alone):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        assert str(file) in artifacts(alone)
        file.write_bytes(whole)


def test_what_is_no_artifact_is_refused(tmp_path, finished):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "notes.txt", finished / "checkpoints"):
        with pytest.raises(InputError, match="expected an artifact"):
            audit(path)


# ---- one byte, one file ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_changed_byte_of_any_file_is_broken_and_the_file_is_named(copy):
    for file in files_below(copy):
        whole = file.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            changed = bytearray(whole)
            changed[place] ^= 1
            file.write_bytes(changed)
            assert str(file) in artifacts(copy), place
        file.write_bytes(whole)
    assert broken(copy) == []


def test_any_lost_file_is_broken_and_named(copy):
    for file in files_below(copy):
        whole = file.read_bytes()
        file.unlink()
        assert str(file) in artifacts(copy) or (file.name == "manifest.json" and str(file.parent) in artifacts(copy))
        file.write_bytes(whole)
    assert broken(copy) == []


@pytest.mark.parametrize(
    "place", ["tokenizer", "data", "data/below", "checkpoints", "checkpoints/00000012/state/key", "evaluations", "*/*-*"]
)
def test_an_added_file_is_broken_and_named(run_copy, place):
    folder = evaluation_of(run_copy) if "*" in place else run_copy / place
    folder.mkdir(exist_ok=True)
    (folder / "added").write_text("x")
    findings = broken(run_copy)
    assert {finding.artifact.partition(" (leaf")[0] for finding in findings} == {str(folder / "added")}
    assert {(finding.expected, finding.found) for finding in findings} >= {("no such file", "one")}


def test_what_a_killed_writer_left_breaks_nothing(run_copy):
    for folder in ("checkpoints/.00000016.0123abcd.tmp", "evaluations/.00000016-x.tmp", ".data.0123abcd.tmp"):
        (run_copy / folder).mkdir()
    assert broken(run_copy) == []


# ---- logs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", ["telemetry.jsonl", "events.jsonl"])
@pytest.mark.parametrize("line", [0, 4])
def test_a_dropped_a_doubled_and_an_edited_line_break_the_log_at_that_line(run_copy, log, line):
    path = run_copy / log
    lines = path.read_bytes().splitlines(keepends=True)
    edited = lines[line].replace(b"0", b"1", 1)
    assert edited != lines[line]
    for changed in ([], [lines[line], lines[line]], [edited]):
        path.write_bytes(b"".join([*lines[:line], *changed, *lines[line + 1 :]]))
        (finding,) = broken(run_copy)
        assert finding.artifact == str(path)
        assert f"line {line + 1 + (len(changed) == 2)} " in finding.expected


def test_telemetry_without_its_last_lines_is_broken_though_its_chain_is_whole(run_copy):
    path = run_copy / "telemetry.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (finding,) = broken(run_copy)
    assert (finding.artifact, finding.found) == (str(path), "11 lines")
    assert "12 lines with chain" in finding.expected


def test_half_a_line_breaks_a_log_unless_a_process_is_writing(run_copy):
    from jaxlm.run import Layout

    with open(run_copy / "events.jsonl", "ab") as file:
        file.write(b'{"event": "sa')
    assert [finding.found for finding in broken(run_copy)] == ["half a line at the end"]
    with Layout(run_copy).locked():
        assert broken(run_copy) == []


# ---- whole on the disk, but not what it was ----------------------------------------------------------------------


def test_a_swapped_tokenizer_of_equal_size_is_broken_everywhere_below_it(run_copy):
    other = other_tokenizer(run_copy)
    shutil.rmtree(run_copy / "tokenizer")
    other.save(run_copy / "tokenizer")
    found = {finding.contract: str(finding.found) for finding in broken(run_copy)}
    assert {"data", "run", "model", "checkpoint", "evaluation"} <= set(found)
    assert other.fingerprint in found["data"] + found["run"]
    assert {finding.contract for finding in broken(run_copy / "tokenizer")} == {"run"}


def test_shards_of_another_tokenizer_are_broken(run_copy):
    made = resave(run_copy / "data", parents={"tokenizer": other_tokenizer(run_copy).fingerprint})
    found = {(finding.contract, str(finding.expected)) for finding in broken(run_copy)}
    assert ("data", f"tokenizer {made.parents['tokenizer']}") in found
    assert {finding.contract for finding in broken(run_copy / "data")} == {"data", "run"}


def test_shards_with_ids_changed_and_all_hashes_recomputed_are_broken_by_their_fingerprint(run_copy):
    path = run_copy / "data" / "train-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[5] = ids[5] ^ 1
    ids.tofile(path)
    made = resave(run_copy / "data")
    assert open_shards(run_copy / "data").manifest == made
    found = {(finding.contract, str(finding.found)) for finding in broken(run_copy)}
    assert found == {(kind, f"data {made.fingerprint}") for kind in ("run", "checkpoint", "evaluation")}


def test_a_checkpoint_of_another_run_is_broken(run_copy):
    root = run_copy / "checkpoints" / "00000008"
    resave(root, parents={**Manifest.load(root).parents, "run": "f" * 64})
    for path in (run_copy, root):
        (finding,) = broken(path)
        assert (finding.contract, finding.artifact, finding.expected) == ("checkpoint", str(root), f"run {'f' * 64}")


def test_a_checkpoint_under_another_step_is_broken(run_copy):
    os.rename(run_copy / "checkpoints" / "00000012", run_copy / "checkpoints" / "00000016")
    assert str(run_copy / "checkpoints" / "00000016") in artifacts(run_copy)


@pytest.mark.parametrize("parent", ["tokenizer", "data", "checkpoint"])
@pytest.mark.parametrize("lost", [False, True])
def test_an_edited_evaluation_with_recomputed_hashes_but_wrong_parents_is_broken(run_copy, parent, lost):
    root = evaluation_of(run_copy)
    manifest = Manifest.load(root)
    parents = {**manifest.parents, parent: "f" * 64}
    if lost:
        del parents[parent]
    (root / "documents.jsonl").write_text("{}\n")
    resave(root, parents=parents, facts={**manifest.facts, "bits_per_byte": 0.1})
    for path in (run_copy, root):
        finding, scores = broken(path)
        assert (finding.contract, finding.artifact) == ("evaluation", str(root))
        assert parent in f"{finding.expected} {finding.found}"
        assert (scores.artifact, scores.found) == (str(root / "documents.jsonl"), "others")


def test_an_evaluation_outlives_its_checkpoint(run_copy):
    resave(run_copy / "checkpoints" / "00000008")
    root = evaluation_of(run_copy)
    facts = {**Manifest.load(root).facts, "step": 4}
    resave(root, facts=facts, parents={**Manifest.load(root).parents, "checkpoint": "f" * 64})
    assert broken(run_copy) == []


def test_an_edited_config_with_a_recomputed_fingerprint_is_broken(run_copy):
    path = run_copy / "resolved.json"
    config = read_resolved(path)
    path.write_bytes(resolved_json(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1.0))))
    assert str(path) in artifacts(run_copy)
    resave_run = dataclasses.replace(Manifest.load(run_copy), files={"resolved.json": record_files(run_copy)["resolved.json"]})
    resave_run.save(run_copy)
    found = [(finding.contract, finding.artifact) for finding in broken(run_copy)]
    assert ("run", str(path)) in found
    assert ("checkpoint", str(run_copy / "checkpoints" / "00000012")) in found


def test_a_checkpoint_with_another_loss_than_its_validation_is_broken(run_copy):
    root = run_copy / "checkpoints" / "00000008"
    facts = Manifest.load(root).facts
    resave(root, facts={**facts, "metric": facts["metric"] + 0.5})
    (finding,) = broken(run_copy)
    assert (finding.contract, finding.artifact) == ("checkpoint", f"{root} (metric)")
    assert finding.expected == f"loss {facts['metric']!r}, as validated"


def test_a_failed_probe_is_broken(run_copy):
    manifest = Manifest.load(run_copy)
    causality = {**manifest.facts["probes"]["causality"], "passed": False, "found": "3 of 16 differ"}
    facts = {**manifest.facts, "probes": {**manifest.facts["probes"], "causality": causality}}
    dataclasses.replace(manifest, facts=facts).save(run_copy)
    assert ("probe", "3 of 16 differ") in {(finding.contract, finding.found) for finding in broken(run_copy)}


def test_a_model_that_todays_code_would_build_otherwise_is_broken(run_copy):
    manifest = Manifest.load(run_copy)
    model = Manifest.from_json(manifest.facts["model"], artifact="")
    other = dataclasses.replace(model, facts={**model.facts, "spec_sha256": "0" * 64})
    dataclasses.replace(manifest, facts={**manifest.facts, "model": other.to_json()}).save(run_copy)
    found = {(finding.contract, finding.expected) for finding in broken(run_copy)}
    assert ("model", f"model {other.fingerprint}") in found


@pytest.mark.parametrize(
    ("part", "fact"),
    [(".", "model"), (".", "probes"), ("checkpoints/00000012", "leaves"), ("checkpoints/00000012", "telemetry"), ("*", "step")],
)
def test_a_manifest_that_lacks_a_fact_is_broken_and_stops_nothing(run_copy, part, fact):
    root = evaluation_of(run_copy) if part == "*" else run_copy / part
    manifest = Manifest.load(root)
    facts = {name: value for name, value in manifest.facts.items() if name != fact}
    dataclasses.replace(manifest, facts=facts).save(root)
    findings = audit(run_copy)
    assert any(str(root) in f.artifact and f"{fact!r}" in str(f.expected) for f in findings if not f.kept)
    assert sum(finding.kept for finding in findings) > 20


def test_a_model_manifest_that_is_damaged_is_broken_and_stops_nothing(run_copy):
    manifest = Manifest.load(run_copy)
    model = json.loads(json.dumps(manifest.facts["model"]))
    model["facts"]["parameters"] += 1
    dataclasses.replace(manifest, facts={**manifest.facts, "model": model}).save(run_copy)
    with pytest.raises(ContractError):
        Manifest.from_json(model, artifact="")
    assert f"{run_copy / 'manifest.json'} (model)" in artifacts(run_copy)


def test_all_that_is_damaged_is_reported_not_only_the_first(run_copy):
    for name in ("manifest.json", "resolved.json", "tokenizer/manifest.json", "data/manifest.json"):
        (run_copy / name).write_text("damaged")
    shutil.rmtree(run_copy / "checkpoints" / "00000012" / "state")
    found = artifacts(run_copy)
    for name in ("manifest.json", "resolved.json", "tokenizer/manifest.json", "data/manifest.json", "00000012/state/_METADATA"):
        assert str(run_copy / name) in found or name in found


def test_a_run_that_has_not_begun_has_nothing_to_check(tmp_path, config):
    (tmp_path / "resolved.json").write_bytes(resolved_json(config))
    with pytest.raises(InputError, match=f"a run whose training has begun; `jaxlm train {tmp_path}` goes on"):
        audit(tmp_path)


def test_an_emptied_event_log_is_broken_and_named(run_copy):
    (run_copy / "events.jsonl").write_bytes(b"")
    assert str(run_copy / "events.jsonl") in {finding.artifact for finding in broken(run_copy)}


def bundle_in(path):
    from jaxlm.data import Batch
    from jaxlm.train.recorder import Recorder

    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    run = Manifest.load(path).fingerprint
    recorder = Recorder(path / "bundles", ring=2, keep=1)
    return recorder.bundle(
        3,
        [{"detector": "nonfinite"}],
        batch=Batch(*([ids] * 5)),
        parents={"tokenizer": "a" * 64, "data": "b" * 64, "model": "c" * 64, "run": run},
        state={"w": np.ones(3, np.float32)},
    )


def test_a_bundle_is_an_artifact_of_its_run(run_copy):
    bundle = bundle_in(run_copy)
    assert broken(run_copy) == []
    assert all(finding.kept for finding in audit(bundle))
    path = bundle / "batch.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert [finding.artifact for finding in broken(run_copy)] == [str(path)]
    shutil.rmtree(bundle)
    manifest = json.loads((bundle_in(run_copy) / "manifest.json").read_text())
    assert manifest["parents"] == {"run": Manifest.load(run_copy).fingerprint}
