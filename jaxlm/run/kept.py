"""Which checkpoints a run has kept, against what its events tell: validations, saves, and what was done again since.

A store chooses by the losses in its manifests, and what it removes is gone. The events remember all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.contract import Finding, Manifest

REMEDY = "Evaluate a checkpoint before it is used as the best one; a lost one comes back from a copy alone."


def kept_findings(
    events: Iterable[Mapping[str, Any]], present: Mapping[int, Manifest | None], *, keep_last: int, where: Path
) -> Iterator[Finding]:
    """Whether each checkpoint has the loss that a validation of its step found; and whether the best one that was saved is
    there, rather than a worse one in its place.

    present: the checkpoints on the disk, with None for a damaged one. A checkpoint that someone has removed is no finding, nor
    is one whose save the events do not tell of: that they are whole is another contract.
    """
    log = list(events)
    saved = {event["step"] for event in log if event["event"] == "save"}
    measured = {step: held.facts["metric"] for step, held in present.items() if held and held.facts.get("metric") is not None}
    for step, metric in sorted((step, metric) for step, metric in measured.items() if step in saved):
        losses = [event["loss"] for event in log if event["event"] == "validation" and event["step"] == step]
        found = f"loss {metric!r}"
        expected = (
            f"loss {(metric if metric in losses else losses[-1])!r}, as validated" if losses else "no loss of a validation"
        )
        yield Finding("checkpoint", f"{where / f'{step:08d}'} (metric)", metric in losses, expected, found, REMEDY)
    best = best_saved(log, newest=max(present, default=-1))
    if best is None or None in present.values():
        return
    step, metric = best
    older = sorted(present)[:-keep_last]
    instead = [other for other in older if other in measured and measured[other] > metric]
    kept = step in present or not instead or any(other <= metric for other in measured.values())
    expected = f"step {step}, the best of those saved, loss {metric:.6g}"
    found = expected if kept else f"step {instead[0]} instead, loss {measured[instead[0]]:.6g}"
    yield Finding("checkpoint", str(where), kept, expected, found, REMEDY)


def best_saved(events: Iterable[Mapping[str, Any]], *, newest: int) -> tuple[int, float] | None:
    """Step and loss of the best checkpoint up to step `newest` that the events tell of, if the run was to keep the best from
    that save on. Those of steps that were taken back, or are done again, do not count; of equal ones the oldest counts."""
    saves: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "save":
            saves = [save for save in saves if save["step"] != event["step"]] + [event]
        elif event["event"] in ("rollback", "start"):
            done = event["to"] if event["event"] == "rollback" else event["step"]
            saves = [save for save in saves if save["step"] <= done]
    saves = [save for save in saves if save["step"] <= newest]
    known = [save for save in saves if save.get("metric") is not None]
    if not known:
        return None
    best = min(known, key=lambda save: (save["metric"], save["step"]))
    if not all(save.get("keep_best") for save in saves if save["step"] >= best["step"]):
        return None
    return best["step"], best["metric"]
