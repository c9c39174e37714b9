"""What all pages share: the document, its look in light and dark, on wide screens and phones, and its parts.

A page is one file: no font, script, style or picture comes from elsewhere, and the policy in its head forbids it. Scripts that
are not the page's own are forbidden as well, so that nothing in the data can run even where an escape were forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #ffffff; --ink: #1c1d1f; --soft: #5b6068; --line: #dcdee2;
  --bar: #2f6fbd; --bad: #b3261e; --t0: #cfe4fb; --t1: #fbe7a8; --t2: #c9efd2; --t3: #f9d3e2; --mark: #1c1d1f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --card: #1d2024; --ink: #e6e7e9; --soft: #a0a6af; --line: #34383e;
    --bar: #6ea8ec; --bad: #ff8a80; --t0: #1f4266; --t1: #574510; --t2: #1d4d2d; --t3: #5c2540; --mark: #ffffff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 66rem; margin: 0 auto; padding: 1.25rem 1rem 9rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.note, dt, th, caption { color: var(--soft); font-weight: 400; }
.bad { color: var(--bad); font-weight: 600; }
code, .mono { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; font-size: .9em; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem 1.5rem; margin: 0; }
dl.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  align-items: start; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; vertical-align: top; }
table.rows td, table.rows th { border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.bars th { width: 1%; white-space: nowrap; padding-right: .75rem; color: var(--ink); }
table.bars td { vertical-align: middle; padding-right: 0; }
table.bars td.number { width: 1%; padding-left: .5rem; }
.bar { display: block; height: .7rem; min-width: 2px; border-radius: 0 4px 4px 0; background: var(--bar); }
"""


def escape(text: object) -> str:
    """`text` for the inside of an element or of a quoted attribute; characters that HTML cannot hold, or that turn the line
    around, become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(text)), quote=True)


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page. title: text; body: HTML; style, script: of this page, beside what all pages share."""
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{script_digest}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; form-action 'none'"
    tail = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n{tail}</body>\n</html>\n"
    )


def embedded(name: str, value: Any) -> str:
    """JSON for the page's script, in an element that no browser runs, whatever text it holds."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="{escape(name)}">{body}</script>'


def section(title: str, body: str, *, note: str = "") -> str:
    """A part of the page under a heading. title, note: text; body: HTML."""
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n"
        + (f'<p class="note">{escape(note)}</p>\n' if note else "")
        + f"{body}\n</section>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values side by side. Both are text."""
    return '<dl class="facts">' + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs) + "</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> str:
    """A table of text. numbers: columns that stand on the right."""
    classes = [' class="number"' if name in numbers else "" for name in head]
    top = "".join(f'<th scope="col"{c}>{escape(name)}</th>' for name, c in zip(head, classes, strict=True))
    lines = ["".join(f"<td{c}>{escape(cell)}</td>" for cell, c in zip(row, classes, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table class="rows"><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def bars(caption: str, values: Iterable[tuple[str, float]], *, digits: int = 2) -> str:
    """A bar for each value >= 0, from zero, with its name before it and its number behind it."""
    values = list(values)
    most = max((value for _, value in values), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><span class="bar" style="width:{100 * value / most:.1f}%"></span></td>'
        f'<td class="number">{value:.{digits}f}</td></tr>\n'
        for name, value in values
    )
    return f'<table class="bars"><caption>{escape(caption)}</caption><tbody>\n{lines}</tbody></table>'
