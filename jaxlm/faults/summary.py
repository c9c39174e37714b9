"""What a campaign comes to: one row for each fault, the totals, and the same as JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.evaluate.statistics import poisson_interval
from jaxlm.faults.clean import Clean
from jaxlm.faults.fault import Fault
from jaxlm.faults.trial import Trial


@dataclass(frozen=True)
class Row:
    """A fault over its seeds. detected: in how many of them, by what should see it and in time. by: what spoke, most often
    first. when: in words. damage: the median, nats per label; None where there is none to measure."""

    fault: Fault
    trials: tuple[Trial, ...]

    @property
    def detected(self) -> int:
        """Seeds on which it was seen as it should be."""
        return sum(trial.right for trial in self.trials)

    @property
    def by(self) -> str:
        """What spoke."""
        found = Counter(trial.seen.by for trial in self.trials if trial.seen is not None)
        return ", ".join(name for name, _ in found.most_common()) or ("nothing can" if self.fault.unseen else "nothing")

    @property
    def when(self) -> str:
        """Before the first step it touches, or so many steps after it; the latest of the seeds."""
        seen = [trial.seen for trial in self.trials if trial.seen is not None]
        if not seen:
            return "never"
        steps = [found.step - (self.fault.at or 1) for found in seen if found.step is not None]
        return f"+{max(steps)} steps" if steps else Counter(found.stage for found in seen).most_common(1)[0][0]

    @property
    def where(self) -> str:
        """Layer and operation, where they were told."""
        found = next((t.seen for t in self.trials if t.seen is not None and t.seen.layer is not None), None)
        return "" if found is None else f"layer {found.layer}{f', {found.operation}' if found.operation else ''}"

    @property
    def damage(self) -> float | None:
        """The median over seeds."""
        found = [trial.damage for trial in self.trials if trial.damage is not None]
        return statistics.median(found) if found else None

    @property
    def public(self) -> str:
        """The public rules that fired at or after the fault's first step, in any seed."""
        begins = self.fault.at or 1
        fired = {name for trial in self.trials for name, step in trial.public.items() if step >= begins}
        return ", ".join(sorted(fired))

    def cells(self) -> tuple[str, ...]:
        """As a line of the table: fault, layer of the stack, by, when, where, damage, public rules."""
        damage = "" if self.damage is None else "lost" if math.isinf(self.damage) else f"{self.damage:+.2f}"
        whole = len(self.trials) == self.detected or (self.fault.unseen and self.by.startswith("nothing"))
        seen = self.by if whole else f"{self.by} ({self.detected}/{len(self.trials)})"
        return self.fault.name, self.fault.layer, seen, self.when, self.where, damage, self.public


HEAD = ("fault", "of", "detected by", "when", "where", "damage", "public rules")


def rows(faults: Sequence[Fault], trials: Sequence[Trial]) -> list[Row]:
    """One row for each fault, in the order given."""
    return [Row(fault, tuple(trial for trial in trials if trial.fault == fault.name)) for fault in faults]


def totals(found: Sequence[Row], clean: Sequence[Clean]) -> list[str]:
    """The lines under the table."""
    possible = [row for row in found if not row.fault.unseen]
    whole = [row for row in possible if row.detected == len(row.trials)]
    lines = [f"{len(whole)} of {len(possible)} faults detected on every seed, in time and by what should see them"]
    for row in possible:
        if row not in whole:
            lines.append(f"  not so: {row.fault.name}: {row.by}, {row.when} (expected {', '.join(row.fault.seen_by)})")
    for row in found:
        if row.fault.unseen:
            lines.append(f"  no detector can see {row.fault.name}: {row.fault.unseen}")
    public = sum(bool(row.public) for row in found)
    lines.append(f"public rules (a loss that is NaN aborts; 6 sigma skips): {public} of {len(found)}")
    if clean:
        steps, alarms = sum(run.steps for run in clean), sum(len(run.alarms) + len(run.broken) for run in clean)
        low, high = poisson_interval(alarms)
        scale = 1e5 / steps
        lines.append(
            f"clean runs: {alarms} false alarms in {len(clean)} runs of {steps:,} steps together; "
            f"{alarms * scale:.2f} in 1e5 steps, 95 % interval {low * scale:.2f} to {high * scale:.2f}"
        )
        lines += [f"  {run.words()}" for run in clean if run.alarms or run.broken]
    return lines


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """One object for each fault and seed."""
    listed = []
    for row in found:
        for trial in row.trials:
            seen, damage = trial.seen, trial.damage
            listed.append(
                {
                    "fault": trial.fault,
                    "of": row.fault.layer,
                    "seed": trial.seed,
                    "detected": trial.right,
                    "by": None if seen is None else seen.by,
                    "expected_by": list(row.fault.seen_by),
                    "stage": None if seen is None else seen.stage,
                    "step_planted": row.fault.at,
                    "step_detected": None if seen is None else seen.step,
                    "layer": None if seen is None else seen.layer,
                    "operation": None if seen is None else seen.operation,
                    "damage": "inf" if damage is not None and math.isinf(damage) else damage,
                    "public_rules": trial.public,
                    "unseen": row.fault.unseen,
                    "refused": trial.refused,
                }
            )
    return listed
