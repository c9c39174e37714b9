"""The page of runs, served while they train: made again when their logs have grown, on this machine by default."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jaxlm.contract import InputError
from jaxlm.report.run import run_page
from jaxlm.report.source import Source

PAUSE = 4.0  # between two pages, in times of what the first of them took to make


class LivePage:
    """The newest page of some runs. Logs are read on from where they ended before.

    refresh: seconds, which the page is told. pause: how long no new page is made after one, in times of what that one took,
    so that the run keeps the processor.
    """

    def __init__(self, sources: Sequence[Source], *, refresh: float, pause: float = PAUSE):
        self._sources, self._refresh, self._pause = sources, refresh, pause
        self._lock = threading.Lock()
        self._page, self._tag, self._not_before = b"", "", 0.0

    def get(self) -> tuple[bytes, str]:
        """The page and a digest of it, made again where a log has grown."""
        with self._lock:
            began = time.monotonic()
            if not self._page or (began >= self._not_before and any([s.history.changed() for s in self._sources])):
                for source in self._sources:
                    source.read()
                self._page = run_page(self._sources, live=self._refresh).encode()
                self._tag = f'"{hashlib.sha256(self._page).hexdigest()[:16]}"'
                self._not_before = began + (1 + self._pause) * (time.monotonic() - began)
            return self._page, self._tag


def live_server(page: LivePage, *, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A server of the page at `/`, which `serve_forever` runs. port: 0 takes a free one.

    Raises InputError where the port cannot be had.
    """
    try:
        server = ThreadingHTTPServer((host, port), _handler(page))
    except (OSError, OverflowError) as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"--port: expected a port of {host} that is free, found {port}: {found}") from None
    server.daemon_threads = True
    return server


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the standard library's
            if self.path.partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND, "only the page is here")
                return
            body, tag = page.get()
            same = self.headers.get("If-None-Match") == tag
            self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
            if not same:
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not same:
                self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None:
            """Nothing: the terminal is for the run."""

    return Handler
