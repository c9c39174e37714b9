"""The samples: a few hundred bytes each, in the scripts that they are said to be in."""

from __future__ import annotations

import unicodedata

import pytest

from jaxlm.tokenizer.samples import SAMPLES

NAMES = {"Han": "CJK", "Han and Kana": ("CJK", "HIRAGANA", "KATAKANA"), "Devanagari": "DEVANAGARI"}


def test_names_are_different_and_every_kind_is_there():
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)
    assert {sample.kind for sample in SAMPLES} == {"language", "code", "emoji", "numbers", "maths", "white space"}
    assert all(100 <= len(sample.text.encode()) <= 400 for sample in SAMPLES)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.kind == "language"], ids=lambda s: s.name)
def test_a_language_is_in_its_script(sample):
    letters = [unicodedata.name(c) for c in sample.text if c.isalpha()]
    script = NAMES.get(sample.script, sample.script.upper())
    assert all(name.startswith(script) for name in letters)
    assert len(letters) > 40
    assert sample.text.count(".") + sample.text.count("。") + sample.text.count("।") == (0 if sample.name == "Thai" else 3)


def test_only_languages_have_scripts():
    assert all(bool(sample.script) == (sample.kind == "language") for sample in SAMPLES)
