"""The page of a tokenizer: a text in its tokens, bytes per token by script and kind of text, and what is odd."""

from __future__ import annotations

from collections.abc import Iterable

from jaxlm.report.page import bars, document, embedded, escape, facts, section, table
from jaxlm.tokenizer.inspection import Inspection, Token, by_group
from jaxlm.tokenizer.visible import signs, visible

TOKENS = 20_000  # of the text that are shown: a page that a phone can still lay out
LISTED = 200  # tokens in each list

STYLE = """
.tokens { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; line-height: 1.9; direction: ltr; }
.tokens.text { max-height: 32rem; overflow-y: auto; }
.t { display: inline-block; max-width: 100%; padding: 0 2px; margin: 0 1px 0 0; border-radius: 3px; unicode-bidi: isolate;
  line-height: 1.5; cursor: default; color: var(--ink); }
.t i { font-style: normal; opacity: .55; }
.c0 { background: var(--t0); } .c1 { background: var(--t1); } .c2 { background: var(--t2); } .c3 { background: var(--t3); }
.list .t { background: var(--t0); margin-right: .5rem; }
.special { border-radius: 999px; padding: 0 .5em; outline: 1px dashed currentColor; outline-offset: -2px; }
.t.same { box-shadow: inset 0 -2px 0 var(--mark); }
.t:focus { outline: 2px solid var(--mark); outline-offset: 0; }
#about { position: fixed; left: 0; right: 0; bottom: 0; background: var(--card); border-top: 1px solid var(--line);
  padding: .5rem 1rem; }
#about > div { max-width: 64rem; margin: 0 auto; display: flex; flex-wrap: wrap; gap: 0 1.5rem; min-height: 3rem;
  align-items: center; max-height: 30vh; overflow-y: auto; }
#about b { color: var(--soft); font-weight: 400; margin-right: .4em; }
@media print { #about { display: none; } .tokens.text { max-height: none; } }
"""

# Shows the token under the pointer, or the one that has the focus; arrows, Home and End move between tokens.
SCRIPT = """
'use strict';
const facts = JSON.parse(document.getElementById('facts').textContent);
const about = document.querySelector('#about > div');
const groups = [...document.querySelectorAll('.tokens')];
let marked = [];
function show(token) {
  const fact = facts[token.dataset.i];
  const rows = [['token', fact.shown], ['id', token.dataset.i], ['bytes', fact.bytes], ['rank', fact.rank]];
  if (fact.joins) rows.push(['joins', fact.joins]);
  if (fact.times !== undefined) rows.push(['in the text', fact.times + (fact.times === 1 ? ' time' : ' times')]);
  about.replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement('span'), label = document.createElement('b'), text = document.createElement('bdi');
    label.textContent = name;
    text.textContent = value;
    text.className = 'mono';
    row.append(label, text);
    return row;
  }));
  for (const other of marked) other.classList.remove('same');
  const text = document.querySelector('.tokens.text');
  marked = text ? [...text.querySelectorAll('[data-i="' + token.dataset.i + '"]')] : [];
  for (const other of marked) other.classList.add('same');
}
for (const group of groups) {
  let current = group.querySelector('.t');
  if (current) current.tabIndex = 0;
  group.addEventListener('pointerover', event => { const t = event.target.closest('.t'); if (t) show(t); });
  group.addEventListener('click', event => { const t = event.target.closest('.t'); if (t) t.focus(); });
  group.addEventListener('focusin', event => {
    const token = event.target.closest('.t');
    if (!token) return;
    current.tabIndex = -1;
    current = token;
    current.tabIndex = 0;
    show(token);
  });
  group.addEventListener('keydown', event => {
    const all = [...group.querySelectorAll('.t')], at = all.indexOf(current);
    const steps = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1};
    const to = steps[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
}
"""


def tokenizer_page(found: Inspection, *, name: str, data: str | None = None) -> str:
    """The page as one HTML document. name: of the tokenizer; data: of what `found.counts` was counted in."""
    tokenizer, ids = found.tokenizer, found.ids.tolist()
    shown: set[int] = set()
    size = len(found.text.encode())
    head = facts(
        [
            ("ids", f"{tokenizer.vocab_size:,}"),
            ("merges", f"{len(tokenizer.merges):,}"),
            ("pattern", tokenizer.pattern),
            ("special tokens", len(tokenizer.special_ids)),
            ("round trip", f"{len(found.failures)} failures" if found.failures else "all came back"),
            ("fingerprint", tokenizer.fingerprint[:16]),
        ]
    )
    cut = f" The first {TOKENS:,} are shown." if len(ids) > TOKENS else ""
    ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
    note = f"{size:,} bytes, {len(ids):,} tokens{ratio}.{cut} Point at a token, tap it, or move with the arrow keys."
    parts = [
        head,
        section("The text in its tokens", _text(found, ids[:TOKENS], shown), note=note),
        _ratios(found),
        *_lists(found, shown, data),
        _round_trip(found),
        '<aside id="about" role="status" aria-live="polite" aria-label="the token in view"><div class="note">Point at a token, '
        "or tap it: its bytes, id and rank stand here.</div></aside>",
        _facts(found, shown, ids),
    ]
    return document(f"Tokenizer {name}", "\n".join(parts), style=STYLE, script=SCRIPT)


def _token(token: Token, colour: str) -> str:
    kind = " special" if token.special else ""
    faint = (f"<i>{escape(sign)}</i>" if stands and len(sign) == 1 else escape(sign) for sign, stands in signs(token.raw))
    return f'<span class="t{colour}{kind}" data-i="{token.id}" tabindex="-1">{"".join(faint)}</span>'


def _text(found: Inspection, ids: list[int], shown: set[int]) -> str:
    shown.update(ids)
    pieces = [
        _token(token := found.tokens[i], f" c{place % 4}") + ("<br>\n" if b"\n" in token.raw else "")
        for place, i in enumerate(ids)
    ]
    return f'<div class="card tokens text" role="group" aria-label="tokens of the text">{"".join(pieces)}</div>'


def _list(found: Inspection, ids: list[int], shown: set[int], label: str) -> str:
    if not ids:
        return ""
    kept = ids[:LISTED]
    shown.update(kept)
    more = f'<p class="note">and {len(ids) - LISTED:,} more</p>' if len(ids) > LISTED else ""
    inside = "\n".join(_token(found.tokens[i], "") for i in kept)
    return f'<div class="card tokens list" role="group" aria-label="{escape(label)}">{inside}</div>{more}'


def _ratios(found: Inspection) -> str:
    languages = [one for one in found.measured if one.sample.kind == "language"]
    charts = [
        bars("by script", by_group(found.measured, "script").items()),
        bars("by kind of text", by_group(found.measured, "kind").items()),
        bars(
            "tokens for each token of English, of the same three sentences",
            [(m.sample.name, m.against_english) for m in languages],
        ),
    ]
    rows = [
        (m.sample.name, m.sample.script or m.sample.kind, m.bytes, m.tokens, f"{m.bytes_per_token:.2f}") for m in found.measured
    ]
    head = ("sample", "script or kind", "bytes", "tokens", "bytes per token")
    body = f'<div class="columns">{"".join(f"<div class=card>{chart}</div>" for chart in charts)}</div>'
    body += f"<details><summary>All samples</summary>{table(head, rows, numbers=head[2:])}</details>"
    return section(
        "Bytes per token", body, note="Of short texts that come with jaxlm. More bytes per token make shorter sequences."
    )


def _lists(found: Inspection, shown: set[int], data: str | None) -> Iterable[str]:
    never, merged = found.never, [i for i in found.not_utf8 if found.tokens[i].parts]
    if never is None:
        yield section("Never in the data", "", note="No data was given: jaxlm tokenizer inspect ... --data.source PATH.")
    else:
        note = f"{len(never):,} of {len(found.tokenizer.merges):,} merges make tokens that {data or 'the data'} never has"
        note += f", nor {found.never_bytes} of the 256 bytes alone."
        yield section("Never in the data", _list(found, never, shown, "tokens that never occur"), note=note)
    yield section("The longest tokens", _list(found, found.longest[:50], shown, "the longest tokens"))
    note = (
        f"{len(found.not_utf8):,} tokens, {len(merged):,} of them made by merges, which are listed. Alone they show as U+FFFD."
    )
    yield section("Not UTF-8 alone", _list(found, merged, shown, "tokens that are no UTF-8"), note=note)
    if found.unreachable:
        note = f"{len(found.unreachable):,} tokens that no text is encoded to: their own bytes merge to something else."
        yield section("Unreachable", _list(found, found.unreachable, shown, "tokens that cannot occur"), note=note)
    special = list(found.tokenizer.special_ids.values())
    yield section("Special tokens", _list(found, special, shown, "special tokens") or '<p class="note">None.</p>')


def _round_trip(found: Inspection) -> str:
    checked = f"{found.checked['ids']:,} ids and {found.checked['texts']:,} texts were encoded and decoded"
    if not found.failures:
        return section("Round trip", "", note=f"{checked}; all came back.")
    rows = [(f.where, f.at, f.expected.hex(" "), f.found.hex(" ")) for f in found.failures]
    body = f'<p class="bad">{len(rows)} failed</p>' + table(("what", "byte", "expected", "found"), rows, numbers=("byte",))
    return section("Round trip", body, note=f"{checked}.")


def _facts(found: Inspection, shown: set[int], ids: list[int]) -> str:
    times = dict.fromkeys(shown, 0)
    for number in ids:
        if number in times:
            times[number] += 1
    told = {}
    for number in sorted(shown):
        token = found.tokens[number]
        told[number] = {
            "shown": visible(token.raw),
            "bytes": token.raw.hex(" "),
            "rank": "special token" if token.special else "a byte" if token.rank is None else token.rank,
            "times": times[number],
        }
        if token.parts:
            told[number]["joins"] = " + ".join(map(visible, token.parts))
    return embedded("facts", told)
