"""The page of a tokenizer: every token on it, hostile ones harmless; in a browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from jaxlm.report import tokenizer as page_of
from jaxlm.report import tokenizer_page
from jaxlm.tokenizer import Tokenizer, train_tokenizer
from jaxlm.tokenizer.inspection import RoundTripFailure, inspect
from jaxlm.tokenizer.visible import visible

from .test_page import Tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title='run'</script>"
EVENT = '"><img src=x onerror="document.title=\'run\'">'
TEXT = f"The cat's\tmat\r\n{EVIL} {EVENT} </script><!-- مرحبا 你好 🙂 \x00\u202e&amp;\n"


@pytest.fixture(scope="module")
def found():
    """A tokenizer with tokens that would run if they could, and the text in which they stand."""
    corpus = [f"{EVIL} {EVENT} the cat sat on the mat" * 50, TEXT * 3]
    trained = train_tokenizer(corpus, vocab_size=330, special_tokens=("<|end|>",))
    tokenizer = Tokenizer(trained.merges, {"<|end|>": 419, EVIL: 600, EVENT: 601}, "gpt2")
    return inspect(tokenizer, TEXT, documents=["the cat", "&"], allow_special=True)


@pytest.fixture(scope="module")
def page(found):
    """The page, under a name that would run as well."""
    return tokenizer_page(found, name=EVIL, data=EVENT)


def facts_on(page):
    return json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])


def test_every_token_of_the_text_stands_there_in_order(found, page):
    text = page[page.index("tokens text") :]
    text = text[: text.index("</div>")]
    tree = Tree(f'<div class="{text}</div>')
    assert [int(a["data-i"]) for tag, a in tree.tags if tag == "span"] == found.ids.tolist()
    assert "".join(tree.text).replace("\n", "") == "".join(visible(found.tokens[i].raw) for i in found.ids.tolist())
    colours = [a["class"].split()[1] for tag, a in tree.tags if tag == "span"]
    assert colours == [f"c{place % 4}" for place in range(len(found.ids))]


def test_every_token_on_the_page_has_its_facts(found, page):
    told = facts_on(page)
    assert {int(number) for number in re.findall(r'data-i="(\d+)"', page)} == set(map(int, told))
    for number, fact in told.items():
        token = found.tokens[int(number)]
        assert bytes.fromhex(fact["bytes"]) == token.raw
        assert fact["rank"] == (token.rank if token.parts else "special token" if token.special else "a byte")
        assert fact["times"] == found.ids.tolist().count(int(number))


def test_nothing_of_the_data_is_markup(page):
    tree = Tree(page)
    assert [a for tag, a in tree.tags if tag == "img"] == []
    assert [a.get("type") for tag, a in tree.tags if tag == "script"] == ["application/json", None]
    assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)
    assert not any(ord(c) < 32 and c != "\n" for c in page)
    assert "\u202e" not in page


def test_lists_and_charts_are_there(found, page):
    for title in (
        "Bytes per token",
        "Never in the data",
        "The longest tokens",
        "Not UTF-8 alone",
        "Special tokens",
        "Round trip",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "by script" in page
    assert "by kind of text" in page
    assert page.count('class="bar"') == 10 + 6 + 17
    assert f"{len(found.never):,} of {len(found.tokenizer.merges):,} merges" in page
    assert "all came back" in page


def test_a_text_that_is_long_is_cut_and_says_so(found, monkeypatch):
    monkeypatch.setattr(page_of, "TOKENS", 5)
    monkeypatch.setattr(page_of, "LISTED", 3)
    page = tokenizer_page(found, name="t")
    assert "The first 5 are shown." in page
    assert len(re.findall(r'class="t c\d', page)) == 5
    assert f"and {len(found.never) - 3:,} more" in page


def test_no_data_and_failures_are_said(found):
    bare = inspect(found.tokenizer, "")
    assert "No data was given" in tokenizer_page(bare, name="t")
    bare.failures.append(RoundTripFailure("<id 5>", 0, b"\x05", b""))
    page = tokenizer_page(bare, name="t")
    assert "1 failed" in page
    assert "&lt;id 5&gt;" in page
    Tree(page)


# ---- in a browser ------------------------------------------------------------------------------------------------

DRIVE = """<script>
const group = document.querySelector('.tokens'), press = key =>
  document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: key, bubbles: true}));
group.querySelector('[tabindex="0"]').focus();
press('ArrowRight'); press('ArrowRight'); press('ArrowLeft');
document.body.dataset.at = [...group.querySelectorAll('.t')].indexOf(document.activeElement);
document.body.dataset.about = document.querySelector('#about').textContent;
document.body.dataset.same = group.querySelectorAll('.same').length;
document.body.dataset.stops = document.querySelectorAll('.tokens.text [tabindex="0"]').length;
group.children[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
document.body.dataset.hovered = document.querySelector('#about').textContent;
document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
</script>"""


def opened(page, folder):
    """The page as a browser has it after its scripts have run."""
    folder.mkdir()
    (folder / "page.html").write_text(page)
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=500,800",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_in_a_browser_its_script_runs_and_no_other(found, page, tmp_path):
    shown = opened(page, tmp_path / "as it is")
    assert "<title>Tokenizer &lt;script&gt;" in shown
    assert 'tabindex="0"' in shown  # set by the page's script, which its policy lets run
    planted = page.replace("</main>", f"{EVIL}{EVENT[2:]}</main>")
    assert "<title>Tokenizer &lt;script&gt;" in opened(planted, tmp_path / "planted")
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert "<title>Tokenizer &lt;script&gt;" in opened(free, tmp_path / "without the policy")
    driven = opened(free.replace("</body>", f"{DRIVE}</body>"), tmp_path / "driven")
    body = dict(re.findall(r'data-([a-z]+)="([^"]*)"', re.search(r"<body[^>]*>", driven)[0]))
    second, first = (found.tokens[found.ids.tolist()[place]] for place in (1, 0))
    assert body["at"] == "1"
    assert f"id{second.id}bytes{second.raw.hex(' ')}" in body["about"]
    assert body["same"] == str(found.ids.tolist().count(second.id))
    assert f"id{first.id}bytes{first.raw.hex(' ')}" in body["hovered"]
    assert (body["stops"], body["wide"]) == ("1", "0")
