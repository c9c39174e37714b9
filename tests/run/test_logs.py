"""Damaged logs: what cannot be read, and what is no longer there, as `jaxlm check` finds it."""

import pytest

from jaxlm.report.run import run_page
from jaxlm.report.source import Source
from jaxlm.run import Layout, audit
from jaxlm.run.logs import damaged_logs, words_of


def flipped(path, line):
    """Let one byte of a line, from 1, be another."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b": ", b":\t", 1)
    path.write_bytes(b"".join(lines))


def of_logs(path):
    """What `jaxlm check` finds broken in the logs."""
    return [finding for finding in audit(path) if not finding.kept and finding.artifact.endswith(".jsonl")]


def test_a_whole_run_has_none(finished):
    assert damaged_logs(Layout(finished)) == []


@pytest.mark.parametrize("name", ["telemetry.jsonl", "events.jsonl"])
def test_a_changed_byte_is_found_at_its_line(run_copy, name):
    flipped(run_copy / name, 6)
    (finding,) = found = damaged_logs(Layout(run_copy))
    assert found == of_logs(run_copy)
    assert words_of(finding).startswith(f"{run_copy / name}: expected line 6 to continue the chain ")
    assert words_of(finding).endswith("Restore it from a copy; the lines before it are whole.")


@pytest.mark.parametrize("name", ["telemetry.jsonl", "events.jsonl"])
def test_what_the_newest_checkpoint_has_seen_is_to_be_there(run_copy, name):
    path = run_copy / name
    for content, found in ((b"".join(path.read_bytes().splitlines(keepends=True)[:5]), "5 lines"), (b"", "0 lines")):
        path.write_bytes(content)
        (finding,) = damaged_logs(Layout(run_copy))
        assert finding.found == found
        assert [finding] == of_logs(run_copy)
    path.unlink()
    (finding,) = damaged_logs(Layout(run_copy))
    assert finding.found == "no such file"


def test_of_a_run_in_use_half_a_line_and_a_log_cut_back_are_none(run_copy):
    path = run_copy / "telemetry.jsonl"
    whole = path.read_bytes()
    for content in (b"", whole + b'{"step'):
        path.write_bytes(content)
        assert damaged_logs(Layout(run_copy)) != []
        with Layout(run_copy).locked():
            assert damaged_logs(Layout(run_copy)) == []
    flipped(path, 3)
    with Layout(run_copy).locked():
        assert len(damaged_logs(Layout(run_copy))) == 1


def test_a_run_that_has_only_begun_lacks_no_log(finished, tmp_path):
    (tmp_path / "resolved.json").write_bytes((finished / "resolved.json").read_bytes())
    assert damaged_logs(Layout(tmp_path)) == []


def test_the_page_says_it_once(run_copy):
    flipped(run_copy / "telemetry.jsonl", 6)
    (run_copy / "events.jsonl").write_bytes(b"")
    source = Source(run_copy)
    source.read()
    assert run_page([source]).count('class="bad"') == 1
    source.verify()
    page = run_page([source])
    assert page.count('class="bad"') == 2
    assert "expected line 6 to continue the chain" in page
    assert "found 0 lines" in page
