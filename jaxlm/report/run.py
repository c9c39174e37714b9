"""The page of runs: curves, heat maps by layer, alarms, samples, the chain of artifacts, what sets configs apart.

Everything is in the one file, reduced to what a screen can show; a page of a run of any length opens at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.report import chain
from jaxlm.report.alarms import alarms, marks
from jaxlm.report.charts import CHARTS, groups, rounded
from jaxlm.report.differences import differences, from_defaults
from jaxlm.report.history import History
from jaxlm.report.page import document, embedded, escape, facts, section, table
from jaxlm.report.samples import samples
from jaxlm.report.series import Series, curve, heat
from jaxlm.report.source import Source
from jaxlm.run.logs import words_of

SCRIPTS = ("scales.js", "view.js", "curves.js", "heatmaps.js", "run.js")


def run_page(sources: Sequence[Source], *, folder: Path | None = None, live: float = 0.0) -> str:
    """The page of one or several runs, which were read, as one HTML document.

    folder: where the file will lie, for the links to replay bundles; None where it will lie nowhere, and has no links.
    live: seconds after which a page that is served comes anew; 0: never.
    """
    names = _names(sources)
    parts = [
        _head(sources, names),
        *_broken(sources, names),
        _curves(len(sources)),
        _last(sources, names),
        alarms(sources, names, folder),
        '<section id="heat-maps"><h2>By layer</h2>\n<p class="note">Rows are layers, columns some steps each, of which the '
        "largest figure is shown. What was not finite is magenta.</p></section>",
        *samples(sources, names),
        _chains(sources, names),
        _configs(sources, names),
        embedded("run-data", _data(sources, names, live)),
    ]
    here = files("jaxlm.report")
    script = "'use strict';\n" + "\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (here / "run.css").read_text(encoding="utf-8") + chain.STYLE
    title = f"Run {names[0]}" if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"
    return document(title, "\n".join(parts), style=style, script=script)


def _names(sources: Sequence[Source]) -> list[str]:
    """The names of the runs; their paths, where two have the same name."""
    names = [source.name for source in sources]
    return [str(s.path) if names.count(s.name) > 1 else s.name for s in sources]


# ---- what the script draws ---------------------------------------------------------------------------------------


def _data(sources: Sequence[Source], names: Sequence[str], live: float) -> dict[str, Any]:
    shown = groups(name for source in sources for name, series in source.history.heats.items() if _tells(name, series))
    runs: list[dict[str, Any]] = []
    for source, run_name in zip(sources, names, strict=True):
        every = source.history.curves | source.history.pace
        wanted = [name for chart in CHARTS for name, _ in chart.curves if name in every]
        maps = {one.name: one for _, inside in shown for one in inside if one.name in source.history.heats}
        drawn = {name: curve(every[name]) for name in wanted}
        mapped = {name: heat(source.history.heats[name], reduce=one.reduce, log=one.log) for name, one in maps.items()}
        runs.append(
            {
                "name": run_name,
                "steps": source.history.steps,
                "curves": {k: v for k, v in drawn.items() if v is not None},
                "heats": {k: v for k, v in mapped.items() if v is not None},
                "marks": sorted(marks(source.history), key=lambda mark: int(mark["step"])),
            }
        )
    has = {name for run in runs for name in run["curves"]}
    return {
        "runs": runs,
        "charts": [asdict(chart) for chart in CHARTS if any(name in has for name, _ in chart.curves)],
        "groups": [{"title": title, "maps": [asdict(one) for one in inside]} for title, inside in shown],
        "live": live,
    }


def _tells(name: str, series: Series) -> bool:
    """Whether a heat map is worth its room: one of counts of what is not finite, where there was none, is not."""
    return not name.startswith("nonfinite") or bool((series.buckets()["high"] > 0).any())


# ---- what stands there without it --------------------------------------------------------------------------------


def _rate(history: History) -> tuple[str, str]:
    """Tokens per second and MFU, as they are at last."""

    def last(name: str) -> float | None:
        series = history.pace.get(name)
        return None if series is None or series.last is None else float(series.last[1])

    rate, mfu = last("tokens_per_second"), last("mfu")
    return "–" if rate is None else f"{rate:,.0f}", "–" if mfu is None else f"{100 * mfu:.1f} %"


def _facts(source: Source) -> list[tuple[str, object]]:
    history = source.history
    validation = history.curves.get("validation/bits_per_byte")
    last = None if validation is None or validation.last is None else float(validation.last[1])
    rate, mfu = _rate(history)
    peak = f" of {source.hardware.words}" if source.hardware is not None and mfu != "–" else ""
    return [
        ("state", source.state),
        ("steps", f"{history.steps:,} of {source.config.train.steps:,}"),
        ("loss", rounded(history.last.get("loss"))),
        ("bits/byte", rounded(history.last.get("bits_per_byte"))),
        ("validation bits/byte", rounded(last)),
        ("tokens/s", rate),
        ("MFU", mfu + peak),
        ("alarms", f"{history.alarms.count:,}"),
        ("skipped steps", f"{history.skipped.count:,}"),
        ("device", source.device or "–"),
    ]


def _head(sources: Sequence[Source], names: Sequence[str]) -> str:
    if len(sources) == 1:
        return facts(_facts(sources[0]))
    rows = [(name, *(value for _, value in _facts(source))) for name, source in zip(names, sources, strict=True)]
    return table(("run", *(name for name, _ in _facts(sources[0]))), rows)


def _broken(sources: Sequence[Source], names: Sequence[str]) -> Iterable[str]:
    for source, name in zip(sources, names, strict=True):
        for finding in source.damaged:
            yield f'<p class="bad">{escape(f"{name}: {words_of(finding)}")}</p>'
        said = {Path(finding.artifact) for finding in source.damaged}
        for path in (path for path in source.history.broken if path not in said):
            words = f"{name}: a line of {path.name} breaks its chain; what follows it is not shown. `jaxlm check` says where."
            yield f'<p class="bad">{escape(words)}</p>'


def _curves(count: int) -> str:
    note = "Drag across a chart to zoom into steps, double-click to see all. Keys: arrows move, + and − zoom, Escape shows all."
    about = ' role="group" aria-label="runs that are shown"' if count > 1 else ""
    legend = f'<span id="legend"{about}></span>'
    bar = f'{legend}<output id="range"></output><button type="button" id="reset" disabled>show all</button>'
    return section("Curves", f'<div class="bar-of-runs">{bar}</div>\n<div class="charts" id="curves"></div>', note=note)


def _last(sources: Sequence[Source], names: Sequence[str]) -> str:
    """The last, lowest and highest value of every curve, for readers without the charts."""
    rows = []
    for name, source in zip(names, sources, strict=True):
        every = source.history.curves | source.history.pace
        for chart in CHARTS:
            for figure, label in chart.curves:
                if figure in every and (row := _extremes(every[figure])) is not None:
                    rows.append((name, chart.title if len(chart.curves) == 1 else f"{chart.title}, {label}", *row))
    head = ("run", "figure", "last", "lowest", "at step", "highest", "at its step")
    body = table(head, rows, numbers=head[2:])
    return f"<details><summary>The curves in numbers</summary>{body}</details>"


def _extremes(series: Series) -> tuple[str, str, str, str, str] | None:
    found = {name: value[:, 0] for name, value in series.buckets().items()}
    some = found["count"] > 0
    if series.last is None or not some.any():
        return None
    found = {name: value[some] for name, value in found.items()}
    low, high = int(np.argmin(found["low"])), int(np.argmax(found["high"]))
    return (
        rounded(series.last[1]),
        rounded(float(found["low"][low])),
        f"{found['low_step'][low]:,}",
        rounded(float(found["high"][high])),
        f"{found['high_step'][high]:,}",
    )


def _chains(sources: Sequence[Source], names: Sequence[str]) -> str:
    parts = []
    for source, name in zip(sources, names, strict=True):
        nodes = chain.chain(source.path, source.config)
        title = f"<h3>{escape(name)}</h3>" if len(sources) > 1 else ""
        errors = "".join(f'<p class="bad">{escape(node.error)}</p>' for node in nodes if node.error)
        parts.append(f"<div>{title}{chain.picture(nodes, name=name)}{errors}</div>")
    note = "Each artifact with its fingerprint, and whether the parents that it recorded are those that are there. "
    note += "Only manifests were read; `jaxlm check` reads every byte."
    return section("The chain of artifacts", f'<div class="columns">{"".join(parts)}</div>', note=note)


def _configs(sources: Sequence[Source], names: Sequence[str]) -> str:
    if len(sources) == 1:
        rows = [(name, *map(_value, values)) for name, values in from_defaults(sources[0].config)]
        return section("Config", table(("field", "this run", "default"), rows), note="Fields that are not the default.")
    rows = [(name, *map(_value, values)) for name, values in differences([source.config for source in sources])]
    note = "Fields in which the runs differ." if rows else "All fields are equal."
    return section("Differences of the configs", table(("field", *names), rows) if rows else "", note=note)


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "–" if value in ("", None) else str(value)
