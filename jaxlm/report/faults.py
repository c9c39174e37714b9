"""The page of a campaign of planted faults: the table, every fault as a lesson, and its curve beside the clean one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlm.faults.clean import Clean
from jaxlm.faults.summary import HEAD, Row, totals
from jaxlm.report.page import document, escape, section, table

WIDTH, HEIGHT = 640, 160

STYLE = """
svg.curve { width: 100%; max-width: 40rem; height: auto; display: block; }
.curve .clean { stroke: var(--soft); } .curve .with { stroke: var(--bar); }
.curve polyline { fill: none; stroke-width: 1.5; } .curve line { stroke: var(--bad); stroke-dasharray: 4 3; }
.curve text { fill: var(--soft); font-size: 12px; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
"""


def faults_page(found: Sequence[Row], clean: Sequence[Clean]) -> str:
    """One HTML document."""
    head = "".join(f"<p>{escape(line)}</p>" for line in totals(found, clean))
    body = [head, section("Faults", table(HEAD, [row.cells() for row in found], numbers=("damage",)))]
    body.append(
        section(
            "Each as a lesson",
            "".join(_lesson(row) for row in found),
            note="Damage is in nats per label on the validation split, by the code as it is, with nothing watching.",
        )
    )
    return document("Planted faults", "\n".join(body), style=STYLE)


def _lesson(row: Row) -> str:
    fault = row.fault
    trial = next((trial for trial in row.trials if trial.losses), None)
    picture = "" if trial is None else curve(trial.losses, trial.clean, begins=fault.at)
    words = next((trial.seen.words for trial in row.trials if trial.seen is not None), fault.unseen)
    pairs = (("Mechanism", fault.mechanism), ("Symptom", fault.symptom), ("Incident", fault.incident), ("Seen", words))
    lines = "".join(f"<p><b>{escape(name)}.</b> {escape(text)}</p>" for name, text in pairs)
    return f"<details><summary>{escape(fault.name)}: {escape(row.by)}, {escape(row.when)}</summary>{lines}{picture}</details>"


def curve(with_fault: Sequence[float | None], clean: Sequence[float | None], *, begins: int | None) -> str:
    """Two loss curves as SVG, and a line where the fault begins; gaps where a loss is not finite."""
    known = [value for value in (*with_fault, *clean) if value is not None]
    if not known:
        return ""
    low, high = min(known), min(max(known), 4 * min(known) + 8)
    steps = max(len(with_fault), len(clean), 2)

    def line(values: Sequence[float | None], name: str) -> str:
        parts: list[list[str]] = [[]]
        for step, value in enumerate(values):
            if value is None:
                parts.append([])
                continue
            x = WIDTH * step / (steps - 1)
            y = HEIGHT - (HEIGHT - 20) * (min(value, high) - low) / ((high - low) or 1.0)
            parts[-1].append(f"{x:.1f},{y:.1f}")
        return "".join(f'<polyline class="{name}" points="{" ".join(part)}"/>' for part in parts if part)

    at = WIDTH * ((begins or 1) - 1) / (steps - 1)
    mark = "" if begins is None else f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT}"/>'
    words = f'<text x="4" y="12">loss {high:.2f}</text><text x="4" y="{HEIGHT - 4}">{low:.2f}, step 1 to {steps}</text>'
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss with the fault and without">'
        f"{line(clean, 'clean')}{line(with_fault, 'with')}{mark}{words}</svg>"
    )
