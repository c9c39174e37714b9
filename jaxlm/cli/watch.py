"""What the telemetry of a run says of itself: every alarm of its detectors, and
for each spike of the loss how many steps before it the first precursor fired.

The detectors go over the logs again. Alarms that were raised while training and
do not come back, as of updates that were taken back, are shown as well.

  jaxlm watch runs/quickstart

Exits with 1 where a log is damaged: what is read of it is shown.
"""

from __future__ import annotations

import argparse

from jaxlm.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm watch`."""
    parser.add_argument("run", metavar="RUN", help="a run directory")


def run(args: argparse.Namespace, out: Output) -> int:
    """Watch."""
    from jaxlm.run import Run
    from jaxlm.run.lineage import changes_of
    from jaxlm.run.logs import damaged_logs, words_of
    from jaxlm.watch.detect import Alarm, expected_of, forecast, watch

    opened = Run.load(args.run)
    damaged = damaged_logs(opened.layout)
    steps, expected = opened.telemetry(), expected_of(opened.config)
    if changes_of(opened.manifest):  # what the schedule and the decays were, steps of several configs do not share
        expected = expected._replace(lr=None, betas=None)
    # An event of step n, its pace say, comes after the record of that step.
    events = [event for event in opened.events() if "step" in event]
    records = sorted([*steps, *events], key=lambda record: (record["step"], "event" in record))
    alarms, spikes = watch(records, expected), forecast(records, expected)
    again = {(alarm.detector, alarm.step) for alarm in alarms}
    raised = [Alarm.from_event(event) for event in events if event["event"] == "alarm"]
    alarms = sorted([*alarms, *(alarm for alarm in raised if (alarm.detector, alarm.step) not in again)], key=lambda a: a.step)
    for alarm in alarms:
        out.line(alarm.words())
    for spike in spikes:
        before = f"{spike.lead} steps before it: {spike.precursor.words()}" if spike.precursor else "no precursor fired"
        out.line(f"step {spike.step}: the loss rose by {spike.height:.3g}; {before}")
    read = "of what can be read: " if damaged else ""
    out.line(f"{read}{len(steps)} steps, {len(alarms)} alarms, {len(spikes)} spikes of the loss")
    for finding in damaged:
        out.warn(f"jaxlm: error: {words_of(finding)}")
    found = [
        {**spike._asdict(), "precursor": spike.precursor.as_json() if spike.precursor is not None else None} for spike in spikes
    ]
    broken = [finding.artifact for finding in damaged]
    out.result({"steps": len(steps), "alarms": [alarm.as_json() for alarm in alarms], "spikes": found, "broken": broken})
    return 1 if damaged else 0
