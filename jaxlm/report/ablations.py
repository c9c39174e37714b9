"""A base and its ablations side by side: a table and curves for the terminal, and a page.

Curves run over the tokens that a run is given, not over its steps, so that batches of all sizes can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxlm.config.ablations import words
from jaxlm.report.charts import rounded
from jaxlm.report.page import document, escape, section, table
from jaxlm.train.ablate import Outcome

HEAD = ("run", "changed", "parameters", "loss", "alarms", "diverged")
NUMBERS = ("parameters", "loss", "alarms")
WIDTH, HEIGHT, POINTS = 320, 120, 160
LEVELS, LEFT_SCALE, NOT_FINITE = "▁▂▃▄▅▆▇", "█", "×"  # of a curve in letters

STYLE = """
.ablations { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.ablations figure { margin: 0; } .ablations figcaption { display: flex; gap: .75rem; flex-wrap: wrap; align-items: baseline; }
.ablations svg { width: 100%; height: auto; display: block; }
.ablations polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.ablations .of-base { stroke: var(--soft); opacity: .6; } .ablations .own { stroke: var(--bar); }
.ablations circle { fill: var(--bar); } .ablations .broke { stroke: var(--bad); stroke-dasharray: 4 3; }
.ablations text { fill: var(--soft); font-size: 11px; }
"""


def row(outcome: Outcome) -> tuple[str, str, str, str, str, str]:
    """A line of the table under `HEAD`; loss is that of the last validation."""
    return (
        outcome.name,
        words(outcome.changes),
        f"{outcome.parameters:,}",
        rounded(outcome.validation),
        f"{sum(outcome.alarms.values()):,}",
        fate(outcome),
    )


def fate(outcome: Outcome) -> str:
    """Where a run diverged, or why it ended; a dash where it did neither."""
    if outcome.stopped:
        at, why = len(outcome.losses), outcome.stopped.partition(":")[0]
        return f"stopped at {at:,}: {why}" if at else f"refused: {why}"
    if not outcome.ended:
        return f"cut off at {len(outcome.losses):,}"
    return "–" if outcome.diverged is None else f"after step {outcome.diverged:,}"


def levels(outcome: Outcome, parts: int) -> list[float]:
    """The mean loss of each of `parts` equal parts of the tokens: NaN where it was not finite, and infinite where there was no
    step any more."""
    steps, losses = outcome.config.train.steps, outcome.losses
    found = []
    for part in range(parts):
        first, end = part * steps // parts, max((part + 1) * steps // parts, part * steps // parts + 1)
        inside = losses[first:end]
        mean = sum(inside) / len(inside) if inside else math.inf
        found.append(mean if math.isfinite(mean) or not inside else math.nan)
    return found


def scale(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """The loss at the bottom and at the top of every curve: the lowest of all, and a little above that of a uniform guess."""
    finite = [value for outcome in outcomes for value in levels(outcome, POINTS) if math.isfinite(value)]
    top = max((math.log(outcome.config.model.vocab_size) for outcome in outcomes), default=1.0) + 0.5
    low = min(finite, default=0.0)
    return low, max(top, low + 1.0)


def drawn(outcomes: Sequence[Outcome], *, width: int) -> list[str]:
    """The loss curve of each run in one line of letters, all on one scale, and a line that says which."""
    names = max(len(outcome.name) for outcome in outcomes)
    low, high = scale(outcomes)
    room, lines = max(10, min(64, width - names - 12)), []
    for outcome in outcomes:
        curve = "".join(_letter(value, low, high) for value in levels(outcome, room))
        lines.append(f"{outcome.name:<{names}}  {curve}  {rounded(outcome.validation):>7}".rstrip())
    about = f"loss in training, {low:.2f} ▁ to {high:.2f} ▇, above it {LEFT_SCALE}, not finite {NOT_FINITE}; and in validation"
    return [*lines, about]


def _letter(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return NOT_FINITE
    if value == math.inf:
        return " "
    if value > high:
        return LEFT_SCALE
    return LEVELS[min(len(LEVELS) - 1, int((value - low) / (high - low) * len(LEVELS)))]


# ---- the page ----------------------------------------------------------------------------------------------------


def ablations_page(outcomes: Sequence[Outcome]) -> str:
    """One HTML document of a base, the first, and its ablations."""
    base = outcomes[0]
    tokens = base.config.train.steps * base.config.tokens_per_step
    low, high = scale(outcomes)
    alarms = [(o.name, name, f"{count:,}") for o in outcomes for name, count in o.alarms.items()]
    why = [(o.name, o.stopped) for o in outcomes if o.stopped]
    figures = "".join(_figure(outcome, base, low, high) for outcome in outcomes)
    note = f"Over about {tokens:,} tokens, from {low:.2f} to {high:.2f} nats per label in all of them. Grey: the base. "
    note += "Dots: validation. Dashed: where the loss left its lowest level for good. "
    note += "`jaxlm report` makes a page of any of these runs, by steps."
    body = [
        section("Runs", table(HEAD, map(row, outcomes), numbers=NUMBERS), note="loss: of the last validation, nats per label."),
        section("Loss", f'<div class="ablations">{figures}</div>', note=note),
        section("Alarms", table(("run", "detector", "alarms"), alarms, numbers=("alarms",)) if alarms else "",
                note="" if alarms else "None."),
    ]  # fmt: skip
    if why:
        body.append(section("Ended before their last step", table(("run", "why"), why)))
    return document("A base and its ablations", "\n".join(body), style=STYLE)


def _figure(outcome: Outcome, base: Outcome, low: float, high: float) -> str:
    def y(value: float) -> float:
        return 4 + (HEIGHT - 8) * (high - min(value, high)) / (high - low)

    def line(of: Outcome, kind: str) -> str:
        parts: list[list[str]] = [[]]
        count = min(POINTS, of.config.train.steps)
        for index, value in enumerate(levels(of, count)):
            if math.isfinite(value):
                parts[-1].append(f"{WIDTH * (index + 0.5) / count:.1f},{y(value):.1f}")
            else:
                parts.append([])
        return "".join(f'<polyline class="{kind}" points="{" ".join(part)}"/>' for part in parts if part)

    steps = outcome.config.train.steps
    dots = "".join(
        f'<circle r="3" cx="{min(WIDTH - 3, WIDTH * step / steps):.1f}" cy="{y(value):.1f}"/>'
        for step, value in outcome.validations
        if math.isfinite(value)
    )
    at = None if outcome.diverged is None else WIDTH * outcome.diverged / steps
    mark = "" if at is None else f'<line class="broke" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT}"/>'
    labels = f'<text x="2" y="12">{high:.1f}</text><text x="2" y="{HEIGHT - 3}">{low:.1f}</text>'
    own, behind = line(outcome, "own"), "" if outcome is base else line(base, "of-base")
    told = f"{escape(rounded(outcome.validation))}{'' if fate(outcome) == '–' else ', ' + escape(fate(outcome))}"
    head = f"<figcaption><b>{escape(outcome.name)}</b> <span>{told}</span></figcaption>"
    about = f'<p class="note">{escape(words(outcome.changes)) or "as it is"}</p>'
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss of {escape(outcome.name)} and of the base">'
    return f'<figure class="card">{head}{about}{picture}{behind}{own}{dots}{mark}{labels}</svg></figure>'
