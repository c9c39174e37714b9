"""The parts of a page: everything escaped, nothing from elsewhere, scripts only its own."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.report.page import bars, document, embedded, escape, facts, section, table

quick = settings(max_examples=200, deadline=None)
VOID = {"meta", "br", "wbr", "img", "link", "input"}


class Tree(HTMLParser):
    """Checks that elements are closed in order; keeps what they are and the text of each."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


HOSTILE = "<script>alert(1)</script> \" ' & </style> <!-- ]]> \u202e\x00\x1b\ud800"


@quick
@given(st.text() | st.just(HOSTILE))
def test_escaped_text_is_text_inside_of_an_element_and_of_an_attribute(text):
    tree = Tree(f'<p title="{escape(text)}">{escape(text)}</p>')
    expected = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "\ufffd", text
    )
    assert [tag for tag, _ in tree.tags] == ["p"]
    assert tree.tags[0][1]["title"] == expected
    assert "".join(tree.text) == expected
    escape(text).encode()


@quick
@given(st.dictionaries(st.text(), st.text() | st.integers(), max_size=4) | st.just({"a": "</script><!--<script>"}))
def test_embedded_data_cannot_end_its_element(value):
    page = embedded("facts", value)
    body = re.fullmatch(r'<script type="application/json" id="facts">(.*)</script>', page, re.DOTALL)[1]
    assert "<" not in body
    assert json.loads(body) == value


def test_every_part_escapes_what_it_is_given():
    parts = [
        section(HOSTILE, "<p>inside</p>", note=HOSTILE),
        facts([(HOSTILE, HOSTILE)]),
        table((HOSTILE, "n"), [(HOSTILE, 1)], numbers=("n",)),
        bars(HOSTILE, [(HOSTILE, 1.0), ("half", 0.5), ("none", 0.0)]),
    ]
    tree = Tree(document(HOSTILE, "".join(parts)))
    assert not {"script", "img", "a"} & {tag for tag, _ in tree.tags}
    assert sum("alert(1)" in text for text in tree.text) == 10  # title and heading of the page, and two of each part
    widths = [attributes["style"] for tag, attributes in tree.tags if attributes.get("class") == "bar"]
    assert widths == ["width:100.0%", "width:50.0%", "width:0.0%"]


def test_bars_of_nothing_are_no_error():
    assert "<tbody>" in bars("x", [])
    assert "width:0.0%" in bars("x", [("a", 0.0)])


@pytest.mark.parametrize("script", ["", "'use strict'; document.title = 'é';"])
def test_a_page_allows_its_own_script_and_nothing_else(script):
    page = document("t", "<p>x</p>", script=script, style="p { color: red }")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    allowed = f"'sha256-{digest}'" if script else "'none'"
    assert f"script-src {allowed};" in policy
    assert page.count("<script") == bool(script)
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport" content="width=device-width' in page
    Tree(page)
