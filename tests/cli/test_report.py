"""`jaxlm report`: the page of runs, written or served."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from jaxlm.report.live import LivePage, live_server
from jaxlm.report.source import Source
from jaxlm.watch import ChainedLog

from .conftest import listing


def test_a_page_is_written_into_the_run_and_written_anew(cli, run_copy):
    before = listing(run_copy)
    said = cli("report", run_copy)
    assert said.status == 0
    page = run_copy / "report.html"
    assert said.out == f"{page}: {len(page.read_bytes()) / 1e6:.2f} MB\n"
    assert page.read_text().startswith("<!doctype html>")
    assert cli("report", run_copy, "--json").json()["steps"] == {str(run_copy): 12}
    assert {name: content for name, content in listing(run_copy).items() if name != "report.html"} == before
    assert cli("check", run_copy, "--quiet").status == 0


def test_out_is_a_new_file_and_several_runs_share_a_page(cli, finished, run_copy):
    said = cli("report", finished, run_copy, "--out", "here/both.html", "--kind", "h100", "--json")
    assert said.json()["page"] == "here/both.html"
    assert said.json()["alarms"] == {str(finished): 0, str(run_copy): 0}
    again = cli("report", finished, "--out", "here/both.html")
    assert again.status == 2
    assert "expected a new file" in again.err


def test_mistakes_are_told_in_one_line(cli, finished, tmp_path):
    for words, named in (
        ([tmp_path], "expected a run directory"),
        ([finished, "--kind", "abacus"], "--kind: expected one of"),
        ([finished, "--live", "--out", "x.html"], "--live: expected no --out"),
        ([finished, "--live", "--refresh", "0"], "--refresh: expected seconds above 0"),
        ([finished, "--live", "--port", "70000"], "--port: expected a port of 127.0.0.1 that is free, found 70000"),
    ):
        said = cli("report", *words)
        assert said.status == 2, words
        assert named in said.err
        assert said.err.count("\n") == 1


def test_a_broken_log_gives_a_page_and_a_status(cli, run_copy):
    lines = (run_copy / "telemetry.jsonl").read_bytes().splitlines(keepends=True)
    (run_copy / "telemetry.jsonl").write_bytes(b"".join(lines[1:]))
    said = cli("report", run_copy)
    assert said.status == 1
    assert f"{run_copy}/telemetry.jsonl: expected line 1 to continue the chain" in said.err
    assert (run_copy / "report.html").is_file()


# ---- served ------------------------------------------------------------------------------------------------------


def test_the_served_page_grows_with_the_run(run_copy):
    with live_server(LivePage([Source(run_copy)], refresh=2.0, pause=0.0), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        where = "http://{}:{}/".format(*server.server_address[:2])
        assert server.server_address[0] == "127.0.0.1"
        try:
            with urllib.request.urlopen(where) as answer:
                page, tag = answer.read().decode(), answer.headers["ETag"]
            data = json.loads(re.search(r'id="run-data">(.*?)</script>', page)[1])
            assert (data["live"], data["runs"][0]["steps"]) == (2.0, 12)
            unchanged = urllib.request.Request(where, headers={"If-None-Match": tag})
            with pytest.raises(urllib.error.HTTPError, match="304"):
                urllib.request.urlopen(unchanged)
            with ChainedLog(run_copy / "telemetry.jsonl") as log:
                log.append({"step": 13, "loss": 1.0})
            with urllib.request.urlopen(unchanged) as answer:
                data = json.loads(re.search(r'id="run-data">(.*?)</script>', answer.read().decode())[1])
            assert data["runs"][0]["steps"] == 13
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(where + "resolved.json")
        finally:
            server.shutdown()
            thread.join()


def test_live_ends_at_an_interrupt(finished):
    words = [sys.executable, "-m", "jaxlm", "report", str(finished), "--live", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        where = process.stdout.readline().split()[0]
        with urllib.request.urlopen(where) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
