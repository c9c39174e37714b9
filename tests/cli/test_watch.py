"""`jaxlm watch` and `jaxlm replay` of a run whose logs are damaged: what can be read, which is damaged, and a status."""

import pytest


def flipped(path, line):
    """Let one byte of a line, from 1, be another."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b": ", b":\t", 1)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("name", ["telemetry.jsonl", "events.jsonl"])
def test_watch_says_which_log_is_damaged_and_from_which_line(cli, run_copy, name):
    flipped(run_copy / name, 6)
    said = cli("watch", run_copy)
    assert said.status == 1
    steps = 5 if name == "telemetry.jsonl" else 12
    assert said.out == f"of what can be read: {steps} steps, 0 alarms, 0 spikes of the loss\n"
    assert said.err.startswith(f"jaxlm: error: {run_copy / name}: expected line 6 to continue the chain ")
    assert said.err.endswith(
        "found another; what is lost is not shown. Restore it from a copy; the lines before it are whole.\n"
    )
    assert cli("watch", run_copy, "--json").json()["broken"] == [str(run_copy / name)]


def test_watch_and_report_say_that_a_log_was_emptied(cli, run_copy):
    (run_copy / "telemetry.jsonl").write_bytes(b"")
    for verb in ("watch", "report"):
        said = cli(verb, run_copy)
        assert said.status == 1
        assert f"{run_copy}/telemetry.jsonl: expected 12 lines with chain " in said.err
        assert "found 0 lines" in said.err


def test_a_whole_run_is_said_to_have_no_damage(cli, finished):
    said = cli("watch", finished)
    assert (said.status, said.out, said.err) == (0, "12 steps, 0 alarms, 0 spikes of the loss\n", "")


def test_replay_names_the_damaged_log_and_goes_on_with_what_is_before_the_damage(cli, run_copy):
    flipped(run_copy / "telemetry.jsonl", 10)
    for words in (("--step", "11"), ()):
        said = cli("replay", run_copy, *words)
        assert (said.status, said.out) == (1, "")
        assert f"{run_copy}/telemetry.jsonl: expected line 10 to continue the chain" in said.err
    said = cli("replay", run_copy, "--step", "9")
    assert said.status == 1
    assert "\nas recorded: " in said.out
    assert f"{run_copy}/telemetry.jsonl: expected line 10 to continue the chain" in said.err
