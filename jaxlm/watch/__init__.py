"""What a run says about itself: the telemetry of every step, the logs that keep it, the line on the terminal."""

from jaxlm.config.schema import WatchConfig
from jaxlm.watch.live import Progress, duration
from jaxlm.watch.sinks import ChainedLog, Mark, read_log, verify_log
from jaxlm.watch.telemetry import Telemetry, first_nonfinite, leaf_norms, number, record_of, still_rows, total_norm

__all__ = [
    "ChainedLog",
    "Mark",
    "Progress",
    "Telemetry",
    "WatchConfig",
    "duration",
    "first_nonfinite",
    "leaf_norms",
    "number",
    "read_log",
    "record_of",
    "still_rows",
    "total_norm",
    "verify_log",
]
