"""Alarms of runs: as marks on the curves, and as a table with links to their replay bundles."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jaxlm.report.charts import rounded
from jaxlm.report.history import History
from jaxlm.report.page import escape, section
from jaxlm.report.source import Source

LISTED = 200  # alarms in the table


def marks(history: History) -> Iterable[dict[str, Any]]:
    """What is marked on the curves: alarms, skipped steps, resumptions."""
    for alarm in history.alarms.all():
        layer = alarm.get("layer")
        place = "" if layer is None else f", layer {layer}"
        text = f"{alarm['detector']}{place}"
        where = layer if isinstance(layer, int) else None
        yield {"step": alarm["step"], "kind": "alarm", "text": text, "layer": where, "what": str(alarm.get("what", ""))}
    for record in history.skipped.all():
        why = f"{record.get('nonfinite', '')} not finite"
        text = f"skipped: {record.get('detector') or why}"
        yield {"step": record["step"], "kind": "skipped", "text": text, "layer": None}
    for record in history.resumed.all():
        yield {"step": record["step"], "kind": "resumed", "text": "resumed", "layer": None}


def alarms(sources: Sequence[Source], names: Sequence[str], folder: Path | None) -> str:
    """The section of the alarms. folder: where the page will lie, for the links; None: without links."""
    several = len(sources) > 1
    rows: list[tuple[str, Source, dict[str, Any]]] = []
    counts: list[str] = []
    for source, name in zip(sources, names, strict=True):
        counts += [f"{name + ': ' if several else ''}{what} {n:,}" for what, n in source.history.detectors.most_common()]
        rows += [(name, source, alarm) for alarm in source.history.alarms.all()]
    if not rows:
        return section("Alarms", "", note="None.")
    head = [*(["run"] if several else []), "step", "detector", "what", "layer", "expected", "found", "action", "replay bundle"]
    lines = []
    for name, source, alarm in sorted(rows, key=lambda row: int(row[2]["step"]))[:LISTED]:
        told = [rounded(alarm.get(key)) for key in ("detector", "what", "layer", "expected", "found", "action")]
        cells = [escape(cell) for cell in ([name] if several else []) + [f"{alarm['step']:,}", *told]]
        cells.append(_bundle(source.path, alarm.get("bundle"), folder))
        lines.append(f'<tr data-step="{int(alarm["step"])}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = f'<div class="wide"><table class="rows"><thead><tr>{top}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>'
    more = f" The first {LISTED} are listed." if len(rows) > LISTED else ""
    return section("Alarms", body, note=f"{'; '.join(counts)}.{more} A click on a row shows its step in the charts.")


def _bundle(run: Path, bundle: Any, folder: Path | None) -> str:
    if not bundle:
        return "–"
    if folder is None:
        return escape(bundle)
    target = quote(Path(os.path.relpath(run / str(bundle), folder)).as_posix())
    return f'<a href="{escape(target)}">{escape(bundle)}</a>'
