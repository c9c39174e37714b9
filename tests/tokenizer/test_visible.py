"""Bytes that a person can see: one line, nothing hidden, nothing that turns the line around."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.visible import is_text, signs, visible

quick = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b" a\tb\r\n", "·a⇥b␍⏎"),
        (b"\x00\x1b\x7f", "␀␛␡"),
        (b"\xf0\x9f\x99", r"\xf0\x9f\x99"),
        ("é🙂你".encode(), "é🙂你"),
        (b"a\xff\xe4\xbd\xa0\xe4", r"a\xff你\xe4"),
        ("a\u200db\u202ec\ufeff".encode(), r"a\u200db\u202ec\ufeff"),
        ("\u00a0\u3000\u2028".encode(), r"\u00a0\u3000\u2028"),
        ("e\u0301\u0302".encode(), "e\u0301\u0302"),
        ("\u0301e".encode(), r"\u0301e"),
        (" \u0301".encode(), r"·\u0301"),
        ("\U000e0001".encode(), r"\U000e0001"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        (b"", ""),
    ],
)
def test_what_shows_nothing_is_shown(raw, shown):
    assert visible(raw) == shown


@quick
@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda s: s.encode(errors="surrogatepass")))
def test_every_result_is_one_visible_line_and_tells_signs_from_text(raw):
    shown = visible(raw)
    assert not any(unicodedata.category(c)[0] in "CZ" for c in shown)
    assert shown.encode() is not None
    assert is_text(raw) == (raw.decode(errors="replace").encode() == raw)
    if is_text(raw):
        assert len(signs(raw)) == len(raw.decode())
        assert all(sign == c for (sign, stands), c in zip(signs(raw), raw.decode(), strict=True) if not stands)
