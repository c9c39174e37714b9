"""One page of one or several runs: curves, heat maps by layer, alarms, samples,
the chain of artifacts, what sets the configs apart.

  jaxlm report runs/quickstart
  jaxlm report runs/a runs/b --out a-and-b.html
  jaxlm report runs/quickstart --live --port 8123

The page is one file that needs no other and no network. With --live it is
served on this machine instead, and comes anew while the runs train; Ctrl-C ends
that. Exits with 1 where a log is damaged: the page is of what can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.output import Output, require_new, write_new
from jaxlm.contract import InputError, write_atomic

if TYPE_CHECKING:
    from jaxlm.report.source import Source

KINDS = "h100, h200, a100, b200, v4, v5e, v5p, v6e or cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm report`."""
    parser.add_argument("paths", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--out", metavar="FILE", help="the new file (default report.html in the first run, written over)")
    parser.add_argument("--kind", metavar="KIND", help=f"devices for MFU: {KINDS} (default: those that the run names)")
    parser.add_argument("--live", action="store_true", help="serve the page instead, and refresh it")
    parser.add_argument("--port", type=int, default=8123, metavar="N", help="port of --live; 0: a free one (default 8123)")
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address of --live (default 127.0.0.1)")
    parser.add_argument("--refresh", type=float, default=5.0, metavar="S", help="seconds between refreshes (default 5)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Write the page, or serve it."""
    from jaxlm.report.run import run_page
    from jaxlm.report.source import Source
    from jaxlm.run.logs import words_of
    from jaxlm.scaling import hardware_of

    if args.out:
        require_new(args.out, option="--out")
    hardware = hardware_of(args.kind) if args.kind else None
    sources = [Source(path, hardware) for path in args.paths]
    if args.live:
        return _serve(sources, args, out)
    for source in sources:
        source.read()
        source.verify()
    target = Path(args.out) if args.out else sources[0].path / "report.html"
    page = run_page(sources, folder=target.parent).encode()
    if args.out:
        write_new(args.out, page, option="--out")
    else:
        write_atomic(target, page)
    out.line(f"{target}: {len(page) / 1e6:.2f} MB")
    damaged = [finding for source in sources for finding in source.damaged]
    for finding in damaged:
        out.warn(f"jaxlm: error: {words_of(finding)}")
    broken = [finding.artifact for finding in damaged]
    alarms = {name: source.history.alarms.count for name, source in zip(args.paths, sources, strict=True)}
    steps = {name: source.history.steps for name, source in zip(args.paths, sources, strict=True)}
    out.result({"page": str(target), "bytes": len(page), "steps": steps, "alarms": alarms, "broken": broken})
    return 1 if broken else 0


def _serve(sources: Sequence[Source], args: argparse.Namespace, out: Output) -> int:
    """Serve until Ctrl-C."""
    from jaxlm.report.live import LivePage, live_server

    if args.out:
        raise InputError("--live: expected no --out beside it, found one; the page is served, not written")
    if not args.refresh > 0:
        raise InputError(f"--refresh: expected seconds above 0, found {args.refresh:g}")
    page = LivePage(sources, refresh=args.refresh)
    with live_server(page, port=args.port, host=args.host) as server:
        host, port = str(server.server_address[0]), server.server_address[1]
        out.line(f"http://{host}:{port}/ until Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    out.result({"host": host, "port": port})
    return 0
