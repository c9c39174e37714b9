"""Tokens on the terminal: alternating colours, or borders where there is no colour; tables that fit its width."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from jaxlm.cli.output import Output
from jaxlm.tokenizer.visible import visible

BORDER = "│"
GAP = 3  # between the columns of a table
# Black on light grounds: neighbours differ, and all can be read on light and on dark terminals, with sixteen colours or more.
STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


class Screen:
    """Where lines for a person go, how wide it is, and whether it has colours. Without a terminal: 80 columns, or COLUMNS."""

    def __init__(self, out: Output):
        stream = sys.stderr if out.as_json else sys.stdout
        self._out = out
        self._console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self.width = self._console.width
        self.colour = self._console.is_terminal and self._console.color_system is not None and not self._console.no_color

    def show(self, what: RenderableType = "") -> None:
        """Print it, cut to lines of the screen's width."""
        with self._console.capture() as captured:
            self._console.print(what)
        self._out.line("\n".join(line.rstrip() for line in captured.get().removesuffix("\n").split("\n")))

    def title(self, text: str) -> None:
        """A line that begins a part, after an empty one."""
        self.show()
        self.show(Text(text, style="bold" if self.colour else ""))

    def items(self, items: Iterable[str], *, more: int = 0) -> None:
        """A list, as many a line as fit; more: how many there are beside them. Nothing for an empty list."""
        line = ""
        for item in [*items, *([f"… and {more:,} more"] if more > 0 else [])]:
            if line and cell_len(line) + 2 + cell_len(item) > self.width:
                self.show(line)
                line = ""
            line += f"  {item}" if line else item
        if line:
            self.show(line)

    def tokens(self, tokens: Iterable[bytes]) -> None:
        """A text with the borders of its tokens; a token with a line end is the last of its line."""
        self.show(drawn(tokens, width=self.width, colour=self.colour))


def drawn(tokens: Iterable[bytes], *, width: int, colour: bool) -> Text:
    """The tokens of a text in lines of at most `width` columns; one that is longer goes over several."""
    lines, edge = [Text()], "" if colour else BORDER

    def begin() -> None:
        lines[-1].append(edge)
        lines.append(Text())

    for raw, style in zip(tokens, cycle(STYLES), strict=False):
        shown = visible(raw)
        if lines[-1].plain and lines[-1].cell_len + cell_len(shown) + 2 * len(edge) > width:
            begin()
        lines[-1].append(edge)
        for letter in shown:
            if lines[-1].cell_len + cell_len(letter) + len(edge) > width:
                lines.append(Text())
            lines[-1].append(letter, style if colour else None)
        if b"\n" in raw:
            begin()
    if lines[-1].plain:
        lines[-1].append(edge)
    else:
        lines.pop()
    return Text("\n").join(lines)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int, right: Sequence[str] = (), fold: Sequence[str] = ()
) -> Table:
    """A table without a frame, `width` columns wide at most: the widest of its columns are made narrower.

    right: columns of numbers, which are never cut. fold: those whose cells go over several lines instead of being cut.
    """
    rows = [tuple(row) for row in rows]
    widths = [max(cell_len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    texts = [place for place, name in enumerate(columns) if name not in right]
    while texts and sum(widths) + GAP * (len(columns) - 1) > width and max(widths[place] for place in texts) > 1:
        widths[max(texts, key=lambda place: widths[place])] -= 1
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, room in zip(columns, widths, strict=True):
        folded = name in fold
        overflow: Literal["fold", "ellipsis"] = "fold" if folded else "ellipsis"
        made.add_column(name, justify="right" if name in right else "left", no_wrap=not folded, overflow=overflow, width=room)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def spelt(raw: bytes) -> str:
    """Bytes in hexadecimal, two digits each."""
    return raw.hex(" ")


def short(raw: bytes, columns: int = 32) -> str:
    """A token in so many columns at most; of one that is cut, how many bytes it has."""
    shown = visible(raw)
    if cell_len(shown) <= columns:
        return shown
    while cell_len(shown) > columns:
        shown = shown[:-1]
    return f"{shown}… {len(raw)} bytes"
