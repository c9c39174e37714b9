"""Detectors over the telemetry: pure functions that turn a record into alarms, within a stated number of false ones.

They see the records and the config, and nothing else: symptoms, not causes.
"""

from jaxlm.watch.detect.alarms import BUDGETS, OF_EVENTS, PRECURSORS, Action, Alarm, Budget
from jaxlm.watch.detect.bank import CHANGES, Bank, bank, judged, loaded, noted, observe, saved, watch
from jaxlm.watch.detect.expected import Expected, expected_of
from jaxlm.watch.detect.forecast import Spike, forecast
from jaxlm.watch.detect.nonfinite import Location, localise

__all__ = [
    "BUDGETS",
    "CHANGES",
    "OF_EVENTS",
    "PRECURSORS",
    "Action",
    "Alarm",
    "Bank",
    "Budget",
    "Expected",
    "Location",
    "Spike",
    "bank",
    "expected_of",
    "forecast",
    "judged",
    "loaded",
    "localise",
    "noted",
    "observe",
    "saved",
    "watch",
]
