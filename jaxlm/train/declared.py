"""A run goes on with other numbers, which is declared: never by itself, and never without a trace.

What a change may touch is written down here, by its name. The event `declared` says what differs; the manifest and
`resolved.json` are replaced by new ones, and the manifest names what it replaced (`jaxlm.run.lineage`). The event is the
commit: it holds what the new files are made of, and whoever opens the run next finishes a change that was cut off after it.

The order of the batches goes on where it was: by examples after a change of the batch size, up to the next whole batch; from
its beginning in other shards. A schedule is asked with the updates that were made so far; one that is to begin anew has them
in `optim.schedule_from`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.config.load import config_fingerprint, fields_that_differ, read_resolved, resolved_json
from jaxlm.config.schema import RunConfig
from jaxlm.config.section import flag
from jaxlm.contract import MANIFEST, FileRecord, InputError, Manifest, new_artifact, write_atomic
from jaxlm.run import Layout
from jaxlm.run.lineage import changes_of
from jaxlm.watch.sinks import read_log

if TYPE_CHECKING:
    from jaxlm.train.session import Session

# What each declared change is about: fields that may differ, or sections that end in a dot.
ABOUT: dict[str, tuple[str, ...]] = {
    "warm restart": ("optim.", "train.steps"),
    "batch size": ("train.batch_size", "train.grad_accum"),
    "mixture": ("data.",),
    "pause": (),
    "mesh": (),
}


def require_declared(cfg: RunConfig, recorded: RunConfig, what: str, layout: Layout) -> None:
    """Raise InputError where a config differs from that of the run in more than the change is about, or in nothing."""
    if what not in ABOUT:
        raise InputError(f"--declare: expected one of {', '.join(ABOUT)}, found {what}")
    if not layout.manifest.is_file():
        raise InputError(f"{layout.path}: expected a run that has begun, for a declared change; start it without --declare")
    differing = fields_that_differ(recorded, cfg)
    others = [name for name in differing if not _is_about(name, what)]
    if others:
        allowed = ", ".join(flag(name).removesuffix(".") for name in ABOUT[what]) or "no field"
        found = "; ".join(f"{flag(name)}: {differing[name][0]!r} there, {differing[name][1]!r} here" for name in others)
        raise InputError(f"{layout.path}: expected changes of {allowed}, by the declared {what}, found others: {found}")
    if what == "mixture":
        if not cfg.data.path or cfg.data.path == recorded.data.path:
            raise InputError("--data.path: expected the shards of a declared mixture, found no others; `jaxlm data` makes them")
    elif ABOUT[what] and not differing:
        allowed = ", ".join(flag(name).removesuffix(".") for name in ABOUT[what])
        raise InputError(f"{layout.path}: expected another value of {allowed}, by the declared {what}, found the same")


def _is_about(name: str, what: str) -> bool:
    return any(name == about or (about.endswith(".") and name.startswith(about)) for about in ABOUT[what])


@dataclasses.dataclass(frozen=True)
class Change:
    """A change that was not made yet. replaced: the manifest until then. manifest: the new one. event: of the log."""

    replaced: Manifest
    manifest: Manifest
    event: Mapping[str, Any]


def change_of(what: str, cfg: RunConfig, layout: Layout, *, data: Manifest, step: int) -> Change:
    """The change of the run at `layout`, `step` steps done, to `cfg` and `data`. Raises InputError where none is left to do."""
    replaced, recorded = Manifest.load(layout.path, "run"), read_resolved(layout.resolved)
    differing = fields_that_differ(recorded, cfg)
    if what == "mixture" and data.fingerprint == replaced.parents["data"]:
        raise InputError(f"--data.path: expected other shards than {replaced.parents['data']}, by the declared mixture")
    if (steps := cfg.train.steps) <= step:
        raise InputError(f"--train.steps: expected more than the {step} steps that {layout.path} has done, found {steps}")
    resolved = resolved_json(dataclasses.replace(cfg, name=recorded.name))
    event: dict[str, Any] = {
        "event": "declared",
        "step": step,
        "what": what,
        "fields": differing,
        "run": replaced.fingerprint,
        "data": replaced.parents["data"],
        "new_data": data.fingerprint,
        "resolved": resolved.decode(),
    }
    return Change(replaced, _successor(replaced, event), event)


def _successor(replaced: Manifest, event: Mapping[str, Any]) -> Manifest:
    """The manifest after a change: what it replaces, with the other numbers and the change."""
    content = event["resolved"].encode()
    change = {name: event[name] for name in ("step", "what", "fields", "run", "data")}
    return dataclasses.replace(
        replaced,
        facts={
            **replaced.facts,
            "config_fingerprint": json.loads(content)["fingerprint"],
            "changes": [*changes_of(replaced), change],
        },
        parents={**replaced.parents, "data": event["new_data"]},
        files={**replaced.files, "resolved.json": FileRecord(hashlib.sha256(content).hexdigest(), len(content))},
        provenance={**replaced.provenance, "changed": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
    )


def make(session: Session, change: Change) -> None:
    """Make a change. Until its event is on the disk, nothing of it has happened."""
    keep_replaced(session.layout, change.replaced)
    session.event(**change.event)
    session.events.sync()
    replace(session.layout, change.replaced, change.event)
    words = [f"{flag(name)} {old!r} until now, {new!r} from here on" for name, (old, new) in change.event["fields"].items()]
    session.say(f"declared   {change.event['what']} after step {change.event['step']}: {'; '.join(words) or 'other shards'}")


def keep_replaced(layout: Layout, replaced: Manifest) -> None:
    """Copy the manifest that is about to be replaced, and its config, to where the lineage looks for them."""
    folder = layout.before(len(changes_of(replaced)) + 1)
    if folder.exists():  # of a change that was cut off before its event
        shutil.rmtree(folder)
    with new_artifact(folder) as temporary:
        for path in (layout.resolved, layout.manifest):
            shutil.copyfile(path, Path(temporary) / path.name)


def replace(layout: Layout, replaced: Manifest, event: Mapping[str, Any]) -> None:
    """Write the new config, then the manifest that names it."""
    write_atomic(layout.resolved, event["resolved"].encode())
    _successor(replaced, event).save(layout.path)


def finish(layout: Layout) -> str | None:
    """Finish a change that was cut off after its event; the fingerprint of the config until then, or None."""
    if not (layout.path / MANIFEST).is_file():
        return None
    found = [event for event, _ in read_log(layout.events) if event["event"] == "declared" and "run" in event]
    manifest = Manifest.load(layout.path, "run")
    if not found or found[-1]["run"] != manifest.fingerprint:
        return None
    replace(layout, manifest, found[-1])
    return str(manifest.facts["config_fingerprint"])


def going_on(cfg: RunConfig, layout: Layout, cut_off: str | None) -> RunConfig:
    """`cfg`; or, where it still has the numbers that the change just finished replaced, the new ones on its mesh."""
    if cut_off is None or config_fingerprint(cfg) != cut_off:
        return cfg
    return dataclasses.replace(read_resolved(layout.resolved), mesh=cfg.mesh, watch=cfg.watch)
