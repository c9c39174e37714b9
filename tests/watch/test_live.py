"""The line of a run: what it says, where it goes, that it fits 80 columns."""

import io

import pytest

from jaxlm.config.schema import WatchConfig
from jaxlm.watch import Progress, duration


def record(step, **fields):
    return {"step": step, "loss": 4.1, "bits_per_byte": 1.7, "grad_norm": 0.6, "skipped": 0, **fields}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is a quarter of a second further on with every look."""
    times = iter(range(10_000))
    monkeypatch.setattr("jaxlm.watch.live.time.monotonic", lambda: next(times) / 4)


@pytest.mark.usefixtures("clock")
def test_lines_are_printed_now_and_then_and_at_the_end_to_the_stream_alone(capsys):
    stream = io.StringIO()
    with Progress(steps=7, tokens_per_step=1000, watch=WatchConfig(print_every=3), stream=stream) as progress:
        progress.start(0)
        for step in range(1, 8):
            progress.step(record(step))
        progress.note("step 7: validation loss 4.0000")
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["3/7", "6/7", "7/7"]
    assert lines[0] == "3/7  loss 4.100  bits/byte 1.700  grad 0.6  4k tok/s  ETA 1s"
    assert lines[3:] == ["step 7: validation loss 4.0000"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("clock")
def test_the_line_fits_80_columns_and_shows_what_is_not_finite():
    progress = Progress(steps=1_000_000, tokens_per_step=2_000_000, watch=WatchConfig(), stream=io.StringIO())
    progress.start(999_990)
    progress.step(record(999_991))
    assert len(progress.words(record(999_992, loss=11.0, bits_per_byte=10.0, grad_norm=123.0))) <= 80
    shown = progress.words(record(999_993, loss="nan", bits_per_byte=None, grad_norm="inf", skipped=3))
    assert "loss nan  bits/byte None  grad inf" in shown
    assert shown.endswith("skipped 3")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_one_line_that_is_redrawn_and_other_lines_stay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Progress(steps=2, tokens_per_step=10, watch=WatchConfig(print_every=1), stream=stream) as progress:
        assert progress.drawn
        progress.start(0)
        progress.step(record(1))
        progress.note("a line that stays")
        progress._live.refresh()
    assert "1/2  loss" in stream.getvalue()
    assert "a line that stays\n" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()
    assert not Progress(steps=2, tokens_per_step=10, watch=WatchConfig(live=False), stream=Terminal()).drawn


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (59.4, "59s"), (60, "1m00s"), (187, "3m07s"), (7500, "2h05m"), (-3, "0s")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
