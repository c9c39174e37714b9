"""Tokens on the terminal: all of them, inside of its width, with borders or colours."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from jaxlm.cli.output import Output
from jaxlm.cli.tokenizer_drawing import BORDER, STYLES, Screen, drawn, short, table
from jaxlm.tokenizer.visible import visible

quick = settings(max_examples=200, deadline=None)
tokens = st.lists(
    st.binary(min_size=1, max_size=30) | st.text("ab \n你é", min_size=1, max_size=30).map(str.encode), max_size=20
)


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        ([b"The", b" c", b"\n", b" sat"], ["│The│·c│⏎│", "│·sat│"]),
        ([b"The", b" cats", b"x"], ["│The│", "│·cats│x│"]),
        ([b"ab", b"c" * 12, b"d"], ["│ab│", "│cccccccc", "cccc│d│"]),
        (["你".encode(), b"\xe5", b"\xa5\xbd"], [r"│你│\xe5│", r"│\xa5\xbd│"]),
        ([b"x\n", b"\n"], ["│x⏎│", "│⏎│"]),
        ([], []),
    ],
)
def test_tokens_between_borders(raw, lines):
    assert drawn(raw, width=10, colour=False).plain.splitlines() == lines


@quick
@given(tokens, st.integers(10, 90), st.booleans())
def test_no_token_is_lost_and_no_line_too_wide(raw, width, colour):
    text = drawn(raw, width=width, colour=colour)
    shown = "".join(visible(token) for token in raw)
    assert text.plain.replace("\n", "").replace(BORDER, "") == shown
    assert all(cell_len(line) <= width for line in text.plain.splitlines())
    if colour:
        assert BORDER not in text.plain
    else:
        assert text.plain.count(BORDER) == len(raw) + sum(line.endswith(BORDER) for line in text.plain.splitlines())


def test_colours_alternate_by_token():
    text = drawn([b"a", b"bc", b"d", b"e", b"f"], width=80, colour=True)
    assert [(span.start, span.style) for span in text.spans] == [(0, STYLES[0])] + [
        (place, STYLES[style]) for place, style in ((1, 1), (2, 1), (3, 2), (4, 3), (5, 0))
    ]


@quick
@given(st.binary(max_size=60), st.integers(4, 40))
def test_a_token_that_is_cut_says_how_long_it_is(raw, columns):
    shown = short(raw, columns)
    if cell_len(visible(raw)) <= columns:
        assert shown == visible(raw)
    else:
        assert shown.endswith(f"… {len(raw)} bytes")
        assert visible(raw).startswith(shown.partition("…")[0]) or "…" in visible(raw)


def screen(monkeypatch, *, terminal, as_json=False, **environment):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **environment}.items():
        monkeypatch.setenv(name, value)
    streams = Stream(), Stream()
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    return Screen(Output(as_json=as_json)), *streams


def test_on_a_terminal_there_are_colours_and_elsewhere_borders(monkeypatch):
    shown, out, _ = screen(monkeypatch, terminal=True)
    shown.tokens([b"a", b"b"])
    assert "\x1b[" in out.getvalue()
    assert BORDER not in out.getvalue()
    for options in ({"terminal": False}, {"terminal": True, "NO_COLOR": "1"}):
        shown, out, _ = screen(monkeypatch, **options)
        shown.tokens([b"a", b"b"])
        shown.title("x")
        assert BORDER in out.getvalue()
        assert "\x1b[4" not in out.getvalue()
        assert "\x1b[3" not in out.getvalue()


def test_with_json_a_person_reads_standard_error(monkeypatch):
    shown, out, err = screen(monkeypatch, terminal=False, as_json=True)
    shown.show("a line")
    assert (out.getvalue(), err.getvalue()) == ("", "a line\n")


def test_lists_and_tables_fit_the_width(monkeypatch):
    shown, out, _ = screen(monkeypatch, terminal=False, COLUMNS="40")
    shown.items([f"item{i}" for i in range(20)], more=7)
    shown.show(table(("name", "count"), [("x" * 60, "5"), ("[red]y", "12")], width=40, right=("count",)))
    assert all(len(line) <= 40 for line in out.getvalue().splitlines())
    assert out.getvalue().split().count("item19") == 1
    assert "… and 7 more" in out.getvalue()
    assert "[red]y" in out.getvalue()
    assert out.getvalue().splitlines()[-1].endswith(" 12")
    shown.items([])
    assert out.getvalue().splitlines()[-1].endswith(" 12")
