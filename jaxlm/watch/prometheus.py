"""The newest figures of a run as Prometheus text, at a port of this machine.

Text format 0.0.4 of the Prometheus documentation, "Exposition formats". Every figure of a telemetry record is a gauge
`jaxlm_NAME`; those of parameters have the label `parameter`, those of one layer the label `layer`, from 0.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jaxlm.contract import InputError
from jaxlm.watch.figures import PARAMETERS, figures

CONTENT = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "step": "Optimizer steps done.",
    "loss": "Mean negative log likelihood of the batch in nats per supervised label.",
    "bits_per_byte": "Bits per byte of the text of the batch.",
    "grad_norm": "Global norm of the gradient before clipping.",
    "lr": "Learning rate of the step.",
    "loss_scale": "Loss scale of the step.",
    "tokens_per_second": "Positions trained on in a second, over the steps of the last pace event.",
    "last_durable_step": "Newest step whose checkpoint is whole on the disk.",
    "alarms_total": "Alarms by detector since this process began.",
}


class PrometheusSink:
    """A sink that answers `GET /metrics`, from a thread of its own, until it is closed.

    port: 0 takes a free one; `address` says which. host: only this machine by default. run: the label of every sample.
    tokens_per_step: positions of a batch, for tokens per second. durable: gives the newest durable step or None, and is
    asked at every scrape. Raises InputError where the port cannot be had.
    """

    def __init__(
        self,
        port: int,
        *,
        run: str,
        tokens_per_step: int,
        durable: Callable[[], int | None] = lambda: None,
        host: str = "127.0.0.1",
    ):
        self._run, self._tokens, self._durable = run, tokens_per_step, durable
        self._lock = threading.Lock()
        self._record: Mapping[str, Any] = {}
        self._validation: dict[str, float | list[float]] = {}
        self._rate: float | None = None
        self._alarms: Counter[str] = Counter()
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self.text))
        except (OSError, OverflowError) as error:
            found = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"--watch.metrics-port: expected a port of {host} that is free, found {port}: {found}") from None
        self._server.daemon_threads = True
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Show this record from now on; its last validation stays until there is another."""
        with self._lock:
            self._record = record
            if validation := record.get("validation"):
                self._validation = figures({"validation": validation})

    def event(self, record: Mapping[str, Any]) -> None:
        """Count an alarm; take the speed from `pace`."""
        with self._lock:
            if record["event"] == "alarm":
                self._alarms[str(record["detector"])] += 1
            elif record["event"] == "pace" and record["seconds"] > 0:
                self._rate = record["steps"] * self._tokens / record["seconds"]

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def text(self) -> str:
        """All samples, as a scrape gets them."""
        durable = self._durable()
        with self._lock:
            found = figures(self._record) | self._validation
            rest = {"step": self._record.get("step"), "tokens_per_second": self._rate, "last_durable_step": durable}
            alarms = dict(self._alarms)
        found |= {name: float(value) for name, value in rest.items() if value is not None}
        families: dict[str, list[str]] = {}
        for name, value in found.items():
            metric, labels = _metric(name)
            for layer, one in enumerate(value) if isinstance(value, list) else ((None, value),):
                families.setdefault(metric, []).append(self._sample(metric, labels, layer, one))
        lines = [line for metric, samples in families.items() for line in _family(metric, "gauge", samples)]
        counted = [self._sample("alarms_total", {"detector": name}, None, float(n)) for name, n in sorted(alarms.items())]
        return "\n".join([*lines, *_family("alarms_total", "counter", counted)]) + "\n"

    def _sample(self, metric: str, labels: Mapping[str, str], layer: int | None, value: float) -> str:
        whole = {"run": self._run, **labels} | ({} if layer is None else {"layer": str(layer)})
        inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in whole.items())
        return f"jaxlm_{metric}{{{inside}}} {_spelt(value)}"


def _metric(name: str) -> tuple[str, dict[str, str]]:
    """The metric of a figure's name, and its labels."""
    group, _, rest = name.partition("/")
    if group in PARAMETERS and rest:
        return group, {"parameter": rest}
    return re.sub(r"[^a-zA-Z0-9_]", "_", name), {}


def _family(metric: str, kind: str, samples: list[str]) -> Iterator[str]:
    yield f"# HELP jaxlm_{metric} {HELP.get(metric, 'From the telemetry of the last step.')}"
    yield f"# TYPE jaxlm_{metric} {kind}"
    yield from samples


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _spelt(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    """What answers a request: the samples at /metrics, nothing elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the standard library's
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND, "only /metrics is here")
                return
            body = text().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None:
            """Nothing: scrapes are no news."""

    return Handler
