"""A run that went on with other numbers, which was declared: what it was before, and which of it a step was made under.

The manifest of such a run states in `changes`, in their order, after how many steps each came, what it is called, and the
fingerprints of the run and the data until then. RUN/before/00001/ and so on hold what it replaced, the manifest and
`resolved.json`. A checkpoint is of the run that trained its last step, so one of the step of a change names the run before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxlm.config.load import read_resolved
from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError, Finding, InputError, Manifest
from jaxlm.run.layout import Layout

COPY = "Restore it from a copy."
EVENT = ("step", "what", "run", "data")  # of a change, what its event says as well


def changes_of(manifest: Manifest) -> list[dict[str, Any]]:
    """The declared changes of a run, in their order."""
    return list(manifest.facts.get("changes", ()))


def parents_at(manifest: Manifest, step: int) -> dict[str, str]:
    """The fingerprints of run and data under which step number `step` was trained."""
    for change in changes_of(manifest):
        if step <= change["step"]:
            return {"run": change["run"], "data": change["data"]}
    return {"run": manifest.fingerprint, "data": manifest.parents["data"]}


def first_step(manifest: Manifest) -> int:
    """Steps done at the last declared change, behind which nobody can go on; 0 without one."""
    return max((change["step"] for change in changes_of(manifest)), default=0)


def before(layout: Layout, manifest: Manifest, step: int) -> tuple[Manifest, RunConfig] | None:
    """The manifest and the config under which step number `step` was trained, where those are no longer the run's.

    Raises ContractError where they are lost or others than the run states.
    """
    for number, change in enumerate(changes_of(manifest), 1):
        if step <= change["step"]:
            folder = layout.before(number)
            try:
                found = Manifest.load(folder, "run")
            except InputError as error:
                raise ContractError("run", artifact=folder, expected="a manifest", found=str(error), remedy=COPY) from None
            if found.fingerprint != change["run"]:
                wanted = f"run {change['run']}"
                raise ContractError("run", artifact=folder, expected=wanted, found=f"run {found.fingerprint}", remedy=COPY)
            found.require_files(folder)
            return found, read_resolved(folder / layout.resolved.name)
    return None


def parent_findings(manifest: Manifest, made: Manifest, step: int, artifact: object) -> Iterator[Finding]:
    """Whether what was made of step number `step` names the run and the data of that time, which are what is found."""
    for kind, print_ in parents_at(manifest, step).items():
        named, remedy = made.parents.get(kind), f"Use the {kind} that it was made with, or restore it from a copy."
        yield Finding(made.kind, str(artifact), named == print_, f"{kind} {named}", f"{kind} {print_}", remedy)


def change_findings(layout: Layout, manifest: Manifest, events: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether the declared changes of a run stand in its events, and what they replaced is there, whole."""
    logged = [{name: event[name] for name in EVENT} for event in events if event["event"] == "declared" and "run" in event]
    stated = [{name: change[name] for name in EVENT} for change in changes_of(manifest)]
    if logged or stated:
        remedy = "Restore both from copies; a change that was cut off is finished by `jaxlm train` of the run."
        yield Finding("run", str(layout.events), logged == stated, f"the changes {stated}", f"{logged}", remedy)
    for change in changes_of(manifest):
        try:
            before(layout, manifest, change["step"])
        except (ContractError, InputError) as error:
            told = (error.artifact, error.expected, error.found) if isinstance(error, ContractError) else None
            where, expected, found = told or (str(layout.path / "before"), "a config", str(error))
            yield Finding("run", where, False, expected, found, COPY)
        else:
            yield Finding("run", str(layout.path / "before"), True, f"run {change['run']}", f"run {change['run']}")
