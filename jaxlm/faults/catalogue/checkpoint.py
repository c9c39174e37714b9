"""Faults of what is saved, restored and recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax

from jaxlm.faults.fault import STEPS, STOPPED, Fault, Patch, Tampered
from jaxlm.faults.leaves import all_changed, rounded, with_params

RESTORED = "jaxlm.train.session:Session._restored"


def _newest(path: Path) -> Path:
    return max(p for p in (path / "checkpoints").iterdir() if p.name.isdigit())


def _data_file(path: Path) -> Path:
    """The largest file of the newest checkpoint's leaves."""
    return max((p for p in (_newest(path) / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _leaf_missing(path: Path) -> None:
    shutil.rmtree(_data_file(path).parent)


def _torn(path: Path) -> None:
    file = _data_file(path)
    file.write_bytes(file.read_bytes()[:-100])


def _flipped(path: Path) -> None:
    file = _data_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _stale(path: Path) -> None:
    """The newest checkpoint is an older one under its name."""
    newest = _newest(path)
    older = sorted(p for p in newest.parent.iterdir() if p.name.isdigit())[-2]
    shutil.rmtree(newest)
    shutil.copytree(older, newest)


def _half_written(path: Path) -> None:
    (_newest(path) / "manifest.json").unlink()


def _edited_log(path: Path) -> None:
    log = path / "telemetry.jsonl"
    lines = log.read_text().splitlines()
    record = json.loads(lines[10])
    record["loss"] = 1.0
    lines[10] = json.dumps(record)
    log.write_text("\n".join(lines) + "\n")


def _edited_config(path: Path) -> None:
    file = path / "resolved.json"
    body = json.loads(file.read_text())
    text = json.dumps(body).replace('"lr": 0.004', '"lr": 0.04')
    file.write_text(text)


def _edited_manifest(path: Path) -> None:
    file = _newest(path) / "manifest.json"
    file.write_text(file.read_text().replace(f'"data_cursor": {STOPPED}', '"data_cursor": 0').replace("telemetry", "telemetrx"))


def _cast(real: Any) -> Any:
    """Weights pass through bfloat16 on their way in."""

    def restored(self: Any, allow_older: bool) -> Any:
        state, mark = real(self, allow_older)
        return dataclasses.replace(state, params=all_changed(state.params, rounded)), mark

    return restored


def _other_key(real: Any) -> Any:
    def restored(self: Any, allow_older: bool) -> Any:
        state, mark = real(self, allow_older)
        key = jax.device_put(jax.random.key(7), state.key.sharding)
        return dataclasses.replace(state, key=key), mark

    return restored


def _swapped_layers(real: Any) -> Any:
    """Two layers are exchanged when the stacked leaves are read."""

    def restored(self: Any, allow_older: bool) -> Any:
        state, mark = real(self, allow_older)
        return with_params(state, wq=lambda array: array[::-1].copy()), mark

    return restored


def _cast_moments(real: Any) -> Any:
    """Once the run is open, the optimizer's second moments pass through bfloat16."""

    def standing(self: Any, *arguments: Any, **options: Any) -> Any:
        state, mark = real(self, *arguments, **options)
        if self.saved is None:
            return state, mark
        *before, adam = state.opt_state
        adam = dataclasses.replace(adam, nu=all_changed(adam.nu, rounded))
        return dataclasses.replace(state, opt_state=(*before, adam)), mark

    return standing


def _newest_alone(real: Any) -> Any:
    """The best ones are looked for among the newest."""

    def steps_to_keep(metrics: Any, *, keep_last: int, **options: Any) -> Any:
        newest = dict(sorted(metrics.items())[-keep_last:])
        return real(newest, keep_last=keep_last, **options)

    return steps_to_keep


FAULTS = (
    Fault(
        name="leaf_missing",
        layer="checkpoint",
        mechanism="The files of one leaf are gone.",
        symptom="Libraries that restore partially leave the initial values.",
        incident="MaxText tests for it (checkpointing_nnx_missing_param_test.py)",
        plant=(Tampered(_leaf_missing),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="file_torn",
        layer="checkpoint",
        mechanism="The last 100 bytes of a leaf's file are missing.",
        symptom="An error, or zeros.",
        incident="KempnerForge #102; disks that fill during a save",
        plant=(Tampered(_torn),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="checkpoint_bit_flip",
        layer="checkpoint",
        mechanism="One bit of a leaf's file is another. Orbax restores it without a word.",
        symptom="None.",
        incident="orbax 0.12: 160 of 160 flipped bits were restored",
        plant=(Tampered(_flipped),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="stale_checkpoint",
        layer="checkpoint",
        mechanism="The newest directory holds an older state.",
        symptom="Steps are trained twice.",
        incident="MaxText PR #5260 (restored an unfinished step), flax #1200",
        plant=(Tampered(_stale),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="checkpoint_uncommitted",
        layer="checkpoint",
        mechanism="The newest directory has no manifest: its save was never committed.",
        symptom="A state of which some leaves are old.",
        incident="KempnerForge #102, flax #1200",
        plant=(Tampered(_half_written),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="manifest_edited",
        layer="checkpoint",
        mechanism="Someone changed the manifest of a checkpoint by hand.",
        symptom="The run goes on from somewhere else.",
        incident="bookkeeping edited by hand; no report is cited",
        plant=(Tampered(_edited_manifest),),
        seen_by=("checkpoint",),
        scene="resume",
    ),
    Fault(
        name="cast_on_restore",
        layer="checkpoint",
        mechanism="Weights pass through bfloat16 as they are restored.",
        symptom="None: the loss moves in the third digit.",
        incident="orbax casts to the target's dtype without a word",
        plant=(Patch(RESTORED, _cast),),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="layers_swapped_on_restore",
        layer="checkpoint",
        mechanism="The stacked layers of one leaf come back in another order.",
        symptom="A spike that heals.",
        incident="conversions between stacked and single layers; no report is cited",
        plant=(Patch(RESTORED, _swapped_layers),),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="key_not_restored",
        layer="checkpoint",
        mechanism="The key of the random numbers is new after a resume.",
        symptom="None; the run cannot be repeated.",
        incident="torchtitan: RNG state is not saved (checkpointer/dcp.py, a TODO)",
        plant=(Patch(RESTORED, _other_key),),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="moments_cast_after_restore",
        layer="checkpoint",
        mechanism="The checkpoint is read as it should be; then the optimizer's second moments pass through bfloat16.",
        symptom="None; the run is not the one that was never stopped.",
        incident="optimizer states cast to save memory once they are loaded; no report is cited",
        plant=(Patch("jaxlm.train.session:Session.standing", _cast_moments),),
        seen_by=("restored",),
        scene="resume",
    ),
    Fault(
        name="best_checkpoint_removed",
        layer="checkpoint",
        mechanism="The best checkpoint is chosen among the newest ones; better ones from before are removed.",
        symptom="None, until the run gets worse and someone wants to go back.",
        incident="retention that counts before it compares; no report is cited",
        plant=(Patch("jaxlm.checkpoint.store:steps_to_keep", _newest_alone),),
        seen_by=("checkpoint",),
        at=1,
        within=STEPS - 1,
        config={"checkpoint.every": 20, "checkpoint.keep_last": 1, "checkpoint.keep_best": 2},
    ),
    Fault(
        name="telemetry_edited",
        layer="checkpoint",
        mechanism="A line of the telemetry was changed afterwards.",
        symptom="A nicer curve.",
        incident="results that cannot be told from edited ones; no report is cited",
        plant=(Tampered(_edited_log),),
        seen_by=("telemetry",),
        scene="check",
    ),
    Fault(
        name="config_edited",
        layer="checkpoint",
        mechanism="The config of a run was changed on the disk: ten times the rate.",
        symptom="A resumed run diverges, or was never what it says.",
        incident="config files that runs share; no report is cited",
        plant=(Tampered(_edited_config),),
        seen_by=("config", "run"),
        scene="check",
    ),
)
