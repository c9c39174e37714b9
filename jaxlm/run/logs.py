"""Both logs of a run: every line continues the chain, and those that the newest checkpoint has seen are there."""

from __future__ import annotations

from collections.abc import Iterator

from jaxlm.checkpoint import CheckpointStore
from jaxlm.contract import ContractError, Finding, InputError
from jaxlm.run.layout import Layout
from jaxlm.watch import Mark, verify_log


def log_findings(layout: Layout, store: CheckpointStore, *, seen: bool = True) -> Iterator[Finding]:
    """One finding for each log. seen: ask for the lines that the newest checkpoint that can be read has seen.

    A run that has its manifest has begun both logs.
    """
    marks: dict[str, Mark] = {}
    for step in reversed(store.committed()) if seen else ():
        try:
            manifest = store.manifest(step)
            held = {"telemetry": manifest.facts["telemetry"], "events": manifest.provenance.get("events")}
            marks = {name: Mark(**mark) for name, mark in held.items() if mark}
            break
        except (ContractError, InputError, KeyError, TypeError):
            continue
    for path in (layout.telemetry, layout.events):
        if path.is_file() or layout.manifest.is_file():
            yield verify_log(path, contract="telemetry", at_least=marks.get(path.stem), open_end=layout.in_use())


def damaged_logs(layout: Layout) -> list[Finding]:
    """The findings that are broken: what is shown of such a run is not all that it did.

    Of a run that trains now it is not asked what its checkpoints have seen: a rollback cuts its telemetry before it removes
    checkpoints.
    """
    store = CheckpointStore(layout.checkpoints)
    return [finding for finding in log_findings(layout, store, seen=not layout.in_use()) if not finding.kept]


def words_of(finding: Finding) -> str:
    """A damaged log in one line: which, from where on, both values, what mends it."""
    return (
        f"{finding.artifact}: expected {finding.expected}, found {finding.found}; what is lost is not shown. {finding.remedy}"
    )
