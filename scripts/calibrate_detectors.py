#!/usr/bin/env python3
"""False alarms of the detectors and how soon they see a change of the loss, with two public rules beside them, in one run.

    scripts/calibrate_detectors.py [--clean 100000] [--trials 40] [--runs 6] [--steps 600] [--logs RUN ...] [--out FILE.json]

Synthetic losses: a power law of the step, and on it noise with memory and heavy tails, an AR(1) of coefficient 0.5 whose
innovations are Student t with 5 degrees of freedom, times 0.02 nats. They are harder than most real ones. Real telemetry:
`--runs` tiny models, trained here with several seeds, widths, precisions and schedules, and finished runs (`--logs`).
About 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from jaxlm.config import schema  # noqa: E402
from jaxlm.evaluate.statistics import poisson_interval  # noqa: E402
from jaxlm.run import Layout, Run  # noqa: E402
from jaxlm.train import fit  # noqa: E402
from jaxlm.watch import read_log  # noqa: E402
from jaxlm.watch.detect import Expected, bank, expected_of, observe  # noqa: E402
from jaxlm.watch.detect.public_rules import observe as observe_rules  # noqa: E402
from jaxlm.watch.detect.public_rules import public_rules  # noqa: E402

LENGTH = 2000  # steps of a synthetic run
ONSET, WITHIN = 1000, 256  # step at which a change begins, and steps in which it counts as found
MEMORY, NOISE = 0.5, 0.02
CHANGES = {
    "one step +0.5": lambda after: 0.5 * (after == 0),
    "shift +0.10": lambda after: 0.10,
    "shift +0.05": lambda after: 0.05,
    "ramp +0.002 a step": lambda after: 0.002 * after,
}
PARTIES = ("jaxlm", "six sigma", "NaN abort")
RULES = {"six sigma": "six_sigma", "NaN abort": "nan_loss"}
Row = dict[str, Any]

# ---- synthetic -------------------------------------------------------------------------------------------------------


def curve(seed: int, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradient norms, float64 [length]."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, length + 1)
    noise, push = np.zeros(length), rng.standard_t(5, length)
    for at in range(length):
        noise[at] = (MEMORY * noise[at - 1] if at else 0.0) + push[at]
    losses = 2.6 + 5.7 * (1.0 + steps / 20.0) ** -0.5 + NOISE * noise
    norms = (0.5 + 2.0 * (1.0 + steps / 20.0) ** -0.7) * np.exp(0.15 * rng.standard_normal(length))
    return losses, norms


def records(losses: np.ndarray, norms: np.ndarray, first: int = 1) -> Iterator[Row]:
    """Telemetry of the steps from `first` on."""
    for at, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        yield {"step": first + at, "loss": float(loss), "grad_norm": float(norm), "finite": True, "skipped": 0, "lr": 1e-3}


class Parties:
    """The detectors and the public rules over one run. found: steps with an alarm, by party; names: of the detectors'."""

    def __init__(self, expected: Expected = Expected()) -> None:
        self.expected, self.state, self.rules = expected, bank(), public_rules()
        self.found: dict[str, list[int]] = {party: [] for party in PARTIES}
        self.names: Counter[str] = Counter()
        self.words: list[str] = []

    def branch(self) -> Parties:
        """Another run with the same past: states are values."""
        other = Parties(self.expected)
        other.state, other.rules = self.state, self.rules
        return other

    def see(self, rows: Iterable[Row]) -> Parties:
        """Go on with these records."""
        for row in rows:
            self.state, alarms = observe(self.state, row, self.expected)
            self.rules, fired = observe_rules(self.rules, row)
            self.names.update(alarm.detector for alarm in alarms)
            self.words += [alarm.words() for alarm in alarms]
            if alarms:
                self.found["jaxlm"].append(row["step"])
            for party, rule in RULES.items():
                if rule in fired:
                    self.found[party].append(row["step"])
        return self


def clean(steps: int) -> tuple[dict[str, int], Counter[str]]:
    """False alarms in so many clean synthetic steps, by party and by detector."""
    totals, names = dict.fromkeys(PARTIES, 0), Counter()
    for seed in range(steps // LENGTH):
        run = Parties().see(records(*curve(seed)))
        names.update(run.names)
        for party in PARTIES:
            totals[party] += len(run.found[party])
    return totals, names


def detection(trials: int) -> dict[str, dict[str, list[int]]]:
    """Steps from the onset to the first alarm, of the trials in which there is one, by change and party."""
    delays = {change: {party: [] for party in PARTIES} for change in CHANGES}
    for seed in range(10_000, 10_000 + trials):
        losses, norms = curve(seed, ONSET + WITHIN)
        before = Parties().see(records(losses[:ONSET], norms[:ONSET]))
        for change, added in CHANGES.items():
            more = np.array([added(after) for after in range(WITHIN)])
            after = before.branch().see(records(losses[ONSET:] + more, norms[ONSET:], ONSET + 1))
            for party in PARTIES:
                if after.found[party]:
                    delays[change][party].append(after.found[party][0] - ONSET - 1)
    return delays


# ---- real ------------------------------------------------------------------------------------------------------------


def config(index: int, steps: int) -> schema.RunConfig:
    """One of the tiny runs: seeds, widths, precisions and schedules take turns."""
    precision = ("float32", "bfloat16", "float32", "float16")[index % 4]
    width, layers = ((32, 2), (48, 3), (32, 4))[index % 3]
    return schema.RunConfig(
        name=f"clean{index}",
        tokenizer=schema.TokenizerConfig(vocab_size=300, train_bytes=100_000),
        data=schema.DataConfig(max_bytes=3_000_000, val_fraction=0.05, order_seed=index),
        model=schema.ModelConfig(d_model=width, n_layers=layers, n_heads=2, context_length=32, vocab_multiple=64),
        optim=schema.OptimConfig(lr=(3e-3, 1e-3)[index % 2], warmup_steps=30, schedule=("cosine", "wsd", "linear")[index % 3]),
        train=schema.TrainConfig(steps=steps, batch_size=(8, 4, 16)[index % 3], seed=index, precision=precision),
        watch=schema.WatchConfig(print_every=10**9, live=False),
        checkpoint=schema.CheckpointConfig(every=steps),
        eval=schema.EvalConfig(every=100, batches=2),
    )


def trained(runs: int, steps: int) -> Iterator[tuple[str, list[Row], Expected]]:
    """The telemetry of tiny runs that are trained here."""
    for index in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            run = fit(config(index, steps), out=Path(folder) / "run", say=lambda line: None)
            yield f"{run.config.name} ({run.config.train.precision})", log(run.path), expected_of(run.config)


def log(path: Path) -> list[Row]:
    """The telemetry of a run directory."""
    return [record for record, _ in read_log(Layout(path).telemetry)]


# ---- tables ----------------------------------------------------------------------------------------------------------


def per_hundred_thousand(count: int, steps: int) -> str:
    """A rate with its interval, in words."""
    low, high = poisson_interval(count)
    scale = 1e5 / steps if steps else math.nan
    return f"{count * scale:8.2f}  ({low * scale:.2f} .. {high * scale:.2f})"


def main() -> None:
    """Everything, printed; as JSON as well where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=100_000, help="synthetic clean steps")
    parser.add_argument("--trials", type=int, default=40, help="synthetic runs for each change")
    parser.add_argument("--runs", type=int, default=6, help="tiny runs to train")
    parser.add_argument("--steps", type=int, default=600, help="steps of each")
    parser.add_argument("--logs", nargs="*", type=Path, default=[], help="finished runs, which count as clean")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    options = parser.parse_args()
    result: Row = {"options": {name: str(value) for name, value in vars(options).items()}}

    print(f"false alarms in 1e5 steps, with a 95 % interval of the Poisson mean\n{'':24}{'steps':>9}")
    counts, names = clean(options.clean)
    for party in PARTIES:
        print(f"synthetic  {party:13}{options.clean:9}  {per_hundred_thousand(counts[party], options.clean)}")
    print(f"  by detector: {dict(names)}")
    result["synthetic"] = {"steps": options.clean, "alarms": counts, "by_detector": dict(names)}

    real, steps, words = dict.fromkeys(PARTIES, 0), 0, []
    finished = ((path.name, log(path), expected_of(Run.load(path).config)) for path in options.logs)
    for name, rows, expected in itertools.chain(trained(options.runs, options.steps), finished):
        run = Parties(expected).see(rows)
        steps += len(rows)
        print(f"  {name}: {len(rows)} steps, {len(run.words)} alarms", flush=True)
        words += [f"{name}: {line}" for line in run.words]
        for party in PARTIES:
            real[party] += len(run.found[party])
    for party in PARTIES if steps else ():
        print(f"real       {party:13}{steps:9}  {per_hundred_thousand(real[party], steps)}")
    for line in words:
        print(f"  {line}")
    result["real"] = {"steps": steps, "alarms": real, "words": words}

    print(f"\nfound within {WITHIN} steps, of {options.trials} (median steps)\n{'':22}" + "".join(f"{p:>16}" for p in PARTIES))
    delays = detection(options.trials)
    for change, by_party in delays.items():
        cells = (f"{len(d)} ({statistics.median(d):.0f})" if d else "0" for d in by_party.values())
        print(f"{change:22}" + "".join(f"{cell:>16}" for cell in cells))
    result["delays"] = delays
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
