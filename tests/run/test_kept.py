"""Which checkpoints a run kept: as its events tell, and no finding where someone cleared up or the log is older."""

import pytest

from jaxlm.contract import Manifest
from jaxlm.run.kept import best_saved, kept_findings


def saved(step, metric, keep_best=1):
    return {"event": "save", "step": step, "seconds": 0.1, "metric": metric, "keep_best": keep_best}


def validated(step, loss):
    return {"event": "validation", "step": step, "loss": loss}


def log_of(losses, **options):
    return [event for step, loss in losses.items() for event in (validated(step, loss), saved(step, loss, **options))]


def manifest(metric):
    return Manifest("checkpoint", {"metric": metric}, {}, {}, {})


def broken(events, present, tmp_path, keep_last=1):
    held = {step: None if metric == "damaged" else manifest(metric) for step, metric in present.items()}
    return [f for f in kept_findings(events, held, keep_last=keep_last, where=tmp_path) if not f.kept]


LOSSES = {10: 3.0, 20: 1.5, 30: 2.0, 40: 2.5}


def test_the_newest_and_the_best_are_no_finding(tmp_path):
    assert broken(log_of(LOSSES), {20: 1.5, 40: 2.5}, tmp_path) == []


def test_a_worse_one_in_the_place_of_the_best_is_named(tmp_path):
    (finding,) = broken(log_of(LOSSES), {10: 3.0, 40: 2.5}, tmp_path)
    assert (finding.contract, finding.artifact) == ("checkpoint", str(tmp_path))
    assert (finding.expected, finding.found) == ("step 20, the best of those saved, loss 1.5", "step 10 instead, loss 3")


def test_a_loss_that_no_validation_of_the_step_found_is_named(tmp_path):
    (finding,) = broken(log_of(LOSSES), {20: 1.4, 40: 2.5}, tmp_path)
    assert finding.artifact == f"{tmp_path / '00000020'} (metric)"
    assert (finding.expected, finding.found) == ("loss 1.5, as validated", "loss 1.4")
    (finding,) = broken([saved(40, 2.5)], {40: 2.5}, tmp_path)
    assert finding.expected == "no loss of a validation"


HARMLESS = {
    "checkpoints that someone removed": (log_of(LOSSES), {40: 2.5}),
    "the newest two, the best removed": (log_of(LOSSES), {30: 2.0, 40: 2.5}),
    "a kill between a save and what goes for it": (log_of(LOSSES), {20: 1.5, 30: 2.0, 40: 2.5}),
    "a damaged one": (log_of(LOSSES), {10: 3.0, 20: "damaged", 40: 2.5}),
    "an older log": ([{k: e[k] for k in e.keys() - {"metric", "keep_best"}} for e in log_of(LOSSES)], {10: 3.0, 40: 2.5}),
    "no best was to be kept": (log_of(LOSSES, keep_best=0), {30: 2.0, 40: 2.5}),
    "no best was to be kept at first": (
        [*log_of({10: 3.0, 20: 1.5}, keep_best=0), *log_of({30: 2.0, 40: 2.5, 50: 2.6})],
        {30: 2.0, 50: 2.6},
    ),
    "the best was never durable": (log_of({10: 3.0, 20: 2.0, 30: 2.5, 40: 1.0}), {20: 2.0, 30: 2.5}),
    "the best was taken back": (
        [*log_of({10: 3.0, 20: 1.0}), {"event": "rollback", "step": 22, "to": 10}, *log_of({30: 3.5})],
        {10: 3.0, 30: 3.5},
    ),
    "the best was done again": (
        [*log_of({10: 3.0, 20: 1.0}), {"event": "start", "step": 10}, *log_of({20: 3.2, 30: 3.5})],
        {10: 3.0, 30: 3.5},
    ),
    "equal losses": (log_of({10: 2.0, 20: 2.0, 30: 2.5}), {20: 2.0, 30: 2.5}),
    "without a validation": ([saved(10, None), saved(20, None)], {20: None}),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_fault_is_no_finding(name, tmp_path):
    events, present = HARMLESS[name]
    assert broken(events, present, tmp_path, keep_last=2 if "two" in name else 1) == []


def test_a_save_that_is_not_known_to_keep_the_best_ends_what_can_be_said():
    events = log_of(LOSSES)
    assert best_saved(events, newest=40) == (20, 1.5)
    assert best_saved([*events, saved(50, 3.0, keep_best=0)], newest=50) is None
    assert best_saved([], newest=3) is None
