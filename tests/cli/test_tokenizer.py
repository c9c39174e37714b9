"""`jaxlm tokenizer`: train, encode, decode, inspect, diff, convert, bench."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.cli import tokenizer as verb
from jaxlm.cli.main import main
from jaxlm.data import open_shards
from jaxlm.tokenizer import Tokenizer, train_tokenizer
from jaxlm.tokenizer.visible import visible


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("the cat and the hat and the bat " * 5 + str(number))
    return folder


def test_train_writes_the_tokenizer_of_the_text_and_reports_it(cli, texts, tmp_path):
    words = ("tokenizer", "train", "--data.source", texts, "--tokenizer.vocab-size", "262", "--out", tmp_path / "tok")
    said = cli(*words, "--json")
    assert said.status == 0
    made = Tokenizer.load(tmp_path / "tok")
    wanted = train_tokenizer([p.read_text() for p in sorted(texts.iterdir())], vocab_size=262)
    assert made.fingerprint == wanted.fingerprint
    assert said.json() == {
        "tokenizer": str(tmp_path / "tok"),
        "vocab_size": 262,
        "fingerprint": made.fingerprint,
        "documents_repaired": 0,
    }
    again = cli(*words)
    assert again.status == 2
    assert "expected a new or empty directory" in again.err


def test_a_config_gives_what_the_words_do_not(cli, tiny, texts, tmp_path):
    words = ("--out", tmp_path / "tok", tiny, "--data.source", texts, "--tokenizer.vocab-size", "260")
    assert cli("tokenizer", "train", *words).status == 0
    assert Tokenizer.load(tmp_path / "tok").vocab_size == 260


def test_encode_and_decode_are_those_of_the_tokenizer(cli, finished):
    tokenizer = Tokenizer.load(finished / "tokenizer")
    text = "naïve <|endoftext|> x"
    ids = tokenizer.encode_ordinary(text)
    assert cli("tokenizer", "encode", finished / "tokenizer", text).out == " ".join(map(str, ids)) + "\n"
    assert cli("tokenizer", "encode", finished / "tokenizer", text, "--json").json() == {"token_ids": ids}
    special = cli("tokenizer", "encode", finished / "tokenizer", "--allow-special", text, "--json").json()["token_ids"]
    assert special == tokenizer.encode(text, allowed_special="all")
    assert cli("tokenizer", "decode", finished / "tokenizer", *ids).out == text + "\n"
    assert cli("tokenizer", "decode", finished / "tokenizer", *ids, "--json").json() == {"text": text}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("train",), ["--out"]),
        (("train", "--out", "tok", "configs/tiny.py", "more"), ["more: expected nothing more"]),
        (("train", "--out", "tok", "--model.n-layers", "2"), ["--model.n-layers"]),
        (("encode", "TOK"), ["a tokenizer directory and text", "--file"]),
        (("encode", "nowhere", "x"), ["nowhere", "tokenizer"]),
        (("encode", "TOK", "x", "--data.strict"), ["--data.strict"]),
        (("decode", "TOK", "300"), ["300", "0..299"]),
        (("decode", "TOK", "x"), ["x: expected an id"]),
        (("decode", "TOK", "-5"), ["-5: expected an id"]),
        (("decode", "TOK", "²"), ["²: expected an id"]),
        (("decode", "TOK"), ["ids", "standard input"]),
        (("encode", "TOK", "x", "--file", "y"), ["x", "--file", "both"]),
        (("encode", "TOK", "--file", "nowhere"), ["nowhere", "No such file"]),
        (("encode", "TOK", "--file", "."), ["Is a directory"]),
        (("encode", "TOK", "x", "--pattern", "gpt2"), ["--pattern", "states it itself"]),
        (("encode", "TOK", "x", "--pattern", "gpt3"), ["--pattern", "gpt3", "cl100k_base"]),
        (("encode", "TOK", "x", "--numpy", ""), ["--numpy", "name of a new file"]),
        (("inspect", "nowhere"), ["nowhere", "tokenizer"]),
        (("inspect", "TOK", "--html", "../run.html"), ["../run.html", "one in use", "--html"]),
        (("inspect", "TOK", "--data.max-bytes", "5"), ["--data.max-bytes", "--data.source"]),
        (("inspect", "TOK", "--model.n-layers", "5"), ["--model.n-layers"]),
        (("inspect", "TOK", "--data.source", "nowhere.txt"), ["nowhere.txt"]),
        (("inspect", "TOK", "--data.path", "nowhere"), ["nowhere", "data"]),
        (("inspect", "TOK", "--rows", "x"), ["--rows", "an integer"]),
        (("diff", "TOK"), ["B"]),
        (("diff", "TOK", "nowhere"), ["nowhere"]),
        (("diff", "TOK", "TOK", "--data.path", "x"), ["--data.path", "--data.source"]),
        (("convert", "TOK", "made"), ["--format", "'made'", "tokenizer.json"]),
        (("convert", "TOK", "made", "--format", "json"), ["--format", "'json'", "tokenizer.json"]),
        (("convert", "TOK", "../run.html", "--format", "tokenizer.json"), ["run.html", "in use"]),
        (("convert", "TOK", "TOK", "--format", "jaxlm"), ["in use"]),
        (("convert", "../run.html", "made.json", "--from-format", "jaxlm"), ["run.html", "an artifact of jaxlm"]),
        (("bench", "TOK", "--passes", "0"), ["--passes", ">= 1"]),
        (("bench", "TOK", "x"), ["x: expected nothing more"]),
        (("bench", "TOK", "--file", "../empty"), ["../empty", "expected text"]),
    ],
)
def test_mistakes_are_named(cli, finished, words, names, tmp_path):
    (tmp_path / "run.html").write_text("mine")
    (tmp_path / "empty").write_text("")
    said = cli("tokenizer", *(finished / "tokenizer" if word == "TOK" else word for word in words))
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert all(name in said.err for name in names), said.err
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "run.html").read_text() == "mine"


HELP = """
import sys
from jaxlm.cli.main import main
main(sys.argv[1:])
heavy = {'jax', 'numpy', 'numba', 'tyro', 'rich', 'regex'}
print(sorted({name.split('.')[0] for name in sys.modules} & heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("action", verb.ACTIONS)
def test_help_of_every_action_shows_an_example_at_80_columns_and_imports_nothing_heavy(action):
    command = [sys.executable, "-c", HELP, "tokenizer", action, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.stderr == "[]\n"
    assert done.stdout.startswith(f"usage: jaxlm tokenizer {action} ")
    assert f"  jaxlm tokenizer {action} tok" in done.stdout.replace("--out ", "")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_the_help_of_the_verb_names_every_action_with_an_example(cli):
    said = cli("tokenizer", "--help")
    assert said.status == 0
    for action in verb.ACTIONS:
        assert f"\n  {action:<9}" in said.out
        assert f"jaxlm tokenizer {action} " in said.out
    assert max(map(len, said.out.splitlines())) <= 80


# ---- text and ids, in files and streams --------------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch):
    """Let standard input hold these bytes."""

    def give(raw):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))

    return give


@pytest.fixture(scope="module")
def tok(finished):
    return finished / "tokenizer"


def test_text_comes_from_words_files_and_standard_input_byte_by_byte(cli, tok, tmp_path, stdin):
    text = "naïve\r\n  <|endoftext|>\n"
    ids = Tokenizer.load(tok).encode_ordinary(text)
    (tmp_path / "text").write_bytes(text.encode())
    assert cli("tokenizer", "encode", tok, "--file", tmp_path / "text", "--json").json() == {"token_ids": ids}
    for words in (("-",), ("--file", "-")):
        stdin(text.encode())
        assert cli("tokenizer", "encode", tok, *words, "--json").json() == {"token_ids": ids}
    assert cli("tokenizer", "encode", tok, "a", "b", "--json").json() == cli("tokenizer", "encode", tok, "a b", "--json").json()
    assert cli("tokenizer", "encode", tok, "--json", "--", "--data.source").json()["token_ids"]


def test_ids_come_from_standard_input(cli, tok, stdin):
    stdin(b"104 101\n108 108 111\n")
    assert cli("tokenizer", "decode", tok, "-").out == "hello\n"
    stdin(b"104 \xff")
    assert cli("tokenizer", "decode", tok, "-").status == 2


@pytest.mark.parametrize("action", ["encode", "inspect", "bench", "diff"])
def test_bytes_that_are_no_utf_8_are_refused_with_their_place(cli, tok, tmp_path, action):
    (tmp_path / "text").write_bytes(b"abc\xff")
    said = cli("tokenizer", action, tok, *([tok] if action == "diff" else []), "--file", tmp_path / "text")
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert "expected UTF-8, found byte 0xff at offset 3" in said.err


def test_ids_are_written_for_numpy_and_never_over_a_file(cli, tok, tmp_path):
    words = ("tokenizer", "encode", tok, "some text", "--numpy", tmp_path / "new" / "ids.npy")
    assert cli(*words, "--json").json() == {"numpy": str(words[-1]), "tokens": len(Tokenizer.load(tok).encode("some text"))}
    made = np.load(words[-1], allow_pickle=False)
    assert made.dtype == np.int32
    assert made.tolist() == Tokenizer.load(tok).encode("some text")
    assert cli(*words).status == 2


# ---- inspect -----------------------------------------------------------------------------------------------------


def test_inspect_reports_all_of_it_as_json(cli, tok, texts):
    tokenizer, text = Tokenizer.load(tok), "the cat 🙂"
    said = cli("tokenizer", "inspect", tok, text, "--json", "--data.source", texts)
    body, ids = said.json(), tokenizer.encode_ordinary(text)
    assert said.status == 0
    assert body["text"]["token_ids"] == ids
    assert body["text"]["bytes_per_token"] == len(text.encode()) / len(ids)
    assert [token["id"] for token in body["text"]["distinct"]] == list(dict.fromkeys(ids))
    assert all(bytes.fromhex(token["bytes"]) == tokenizer.vocab[token["id"]] for token in body["text"]["distinct"])
    seen = {i for path in texts.iterdir() for i in tokenizer.encode_ordinary(path.read_text())}
    merged = set(range(256, tokenizer.vocab_size)) - set(tokenizer.special_ids.values())
    assert body["never"]["token_ids"] == sorted(merged - seen)
    assert (body["never"]["documents"], body["never"]["data"]) == (4, str(texts))
    assert body["round_trip"]["failures"] == []
    assert body["round_trip"]["checked"]["ids"] == tokenizer.vocab_size
    assert {sample["kind"] for sample in body["samples"]} >= {"language", "code", "emoji", "numbers"}
    assert len(body["longest"][0]["bytes"]) == 2 * max(map(len, (tokenizer.vocab[i] for i in merged)))


def test_inspect_shows_borders_and_lists_at_80_columns(cli, tok, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = cli("tokenizer", "inspect", tok, "zq\n 🙂", "--tokens", "3")
    assert "\n│z│q│⏎│\n" in said.out
    assert "… the first 3 of " in said.out
    assert "no data was given" in said.out
    assert "all came back" in said.out
    assert "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_inspect_without_a_text_shows_one(cli, tok):
    assert cli("tokenizer", "inspect", tok, "--json").json()["text"]["text"].startswith("Hello, world!")
    assert cli("tokenizer", "inspect", tok, "", "--json").json()["text"]["tokens"] == 0


def test_inspect_counts_the_ids_of_shards(cli, finished, tok, tmp_path):
    shards = open_shards(finished / "data")
    seen = set(shards.train.slice(0, len(shards.train)).tolist())
    body = cli("tokenizer", "inspect", tok, "x", "--json", "--data.path", finished / "data").json()
    assert body["never"]["token_ids"] == [i for i in range(256, 299) if i not in seen]
    assert body["never"]["documents"] == shards.train.documents
    loaded = Tokenizer.load(tok)
    Tokenizer(loaded.merges, ("<|end|>",), loaded.pattern).save(tmp_path / "other")
    said = cli("tokenizer", "inspect", tmp_path / "other", "x", "--data.path", finished / "data")
    assert said.status == 1
    assert "contract" in said.err


def test_what_does_not_come_back_is_exit_status_1(cli, tok, monkeypatch):
    right = Tokenizer.decode_bytes
    monkeypatch.setattr(Tokenizer, "decode_bytes", lambda self, ids: right(self, ids).replace(b"q", b"k"))
    said = cli("tokenizer", "inspect", tok, "quick")
    assert said.status == 1
    assert "FAILED" in said.out
    assert "the text: at byte 0 expected 71 75 69 63 6b, found 6b 75 69 63 6b" in said.out
    said = cli("tokenizer", "inspect", tok, "quick", "--json")
    assert said.status == 1
    assert {"where": "the text", "offset": 0, "expected": b"quick".hex(), "found": b"kuick".hex()} in said.json()["round_trip"][
        "failures"
    ]


def test_inspect_writes_a_page_and_never_over_another(cli, tok, tmp_path):
    words = ("tokenizer", "inspect", tok, "<b> text", "--html", tmp_path / "new" / "page.html")
    said = cli(*words)
    assert said.status == 0
    page = words[-1].read_text()
    assert page.startswith("<!doctype html>")
    assert "&lt;" in page
    assert "<b> text" not in page
    assert [p.name for p in words[-1].parent.iterdir()] == ["page.html"]
    assert cli(*words).status == 2
    assert words[-1].read_text() == page


# ---- diff --------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tok, tmp_path):
    """A tokenizer of fewer merges, another pattern and another special token."""
    loaded = Tokenizer.load(tok)
    Tokenizer(loaded.merges[:10], ("<|end|>",), "cl100k").save(tmp_path / "other")
    return tmp_path / "other"


def test_a_tokenizer_is_identical_to_itself(cli, tok):
    body = cli("tokenizer", "diff", tok, tok, "--json").json()
    assert body["identical"] is True
    assert (body["texts"]["documents_with_other_ids"], body["texts"]["bytes_split_differently"]) == (0, 0)
    assert "identical:" in cli("tokenizer", "diff", tok, tok).out


def test_diff_says_where_and_by_how_much(cli, tok, other, texts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    a, b = Tokenizer.load(tok), Tokenizer.load(other)
    said = cli("tokenizer", "diff", tok, other, "x 1", "--data.source", texts)
    assert said.status == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "pattern: A gpt2, B cl100k" in said.out
    body = cli("tokenizer", "diff", tok, other, "x 1", "--json", "--data.source", texts).json()
    documents = ["x 1", *(path.read_text() for path in sorted(texts.iterdir()))]
    assert body["identical"] is False
    assert body["texts"]["documents"] == 5
    assert body["texts"]["tokens"] == [sum(len(t.encode_ordinary(text)) for text in documents) for t in (a, b)]
    stretch = body["texts"]["stretches"][0]
    assert stretch["count"] > 0
    for cut in (stretch["a"], stretch["b"]):
        assert f"│{'│'.join(visible(bytes.fromhex(token)) for token in cut)}│" in said.out
    assert body["merges"]["first_difference"] == len(b.merges)
    assert body["special_tokens"]["<|end|>"][0] is None
    assert body["vocabulary"]["only_a"] == [b"".join(merge).hex() for merge in a.merges[10:]]


def test_diff_without_a_text_compares_the_samples(cli, tok, other):
    assert cli("tokenizer", "diff", tok, other, "--json").json()["texts"]["documents"] > 20


# ---- other formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "name", "options"),
    [
        ("tokenizer.json", "made.json", ()),
        ("vocab.json+merges.txt", "made", ("--format", "vocab.json+merges.txt")),
        ("tiktoken", "made.tiktoken", ()),
        ("jaxlm", "made", ("--format", "jaxlm")),
    ],
)
def test_a_tokenizer_goes_into_every_format_and_comes_back(cli, tok, tmp_path, form, name, options):
    said = cli("tokenizer", "convert", tok, tmp_path / name, *options, "--json")
    assert said.status == 0
    assert (said.json()["format"], said.json()["texts_compared"] > 20) == (form, True)
    stated = ("--pattern", "gpt2", "--special-tokens", "<|endoftext|>=299") if form == "tiktoken" else ()
    assert cli("tokenizer", "diff", tok, tmp_path / name, "--json", *stated).json()["identical"] is True
    back = cli("tokenizer", "convert", tmp_path / name, tmp_path / "back", "--format", "jaxlm", *stated)
    assert back.status == 0
    assert Tokenizer.load(tmp_path / "back").fingerprint == Tokenizer.load(tok).fingerprint
    words = ("tokenizer", "encode", tmp_path / name, "the cat", "--json", *stated)
    assert cli(*words).json()["token_ids"] == Tokenizer.load(tok).encode("the cat")
    assert cli("tokenizer", "convert", tok, tmp_path / name, *options).status == 2


def test_what_is_read_back_with_other_ids_is_removed_and_a_broken_contract(cli, tok, tmp_path, monkeypatch):
    from jaxlm.cli import tokenizer_convert

    loaded = Tokenizer.load(tok)
    wrong = Tokenizer(loaded.merges[:-1], {"<|endoftext|>": 299}, loaded.pattern)
    monkeypatch.setattr(tokenizer_convert, "read_back", lambda *_: wrong)
    for words in (("made.json",), ("made", "--format", "vocab.json+merges.txt")):
        said = cli("tokenizer", "convert", tok, *words)
        assert said.status == 1
        assert "contract 'tokenizer' is broken at made" in said.err
    assert list((tmp_path / "here").iterdir()) == []


def test_special_tokens_have_all_ids_or_none(cli, tok, tmp_path):
    cli("tokenizer", "convert", tok, "made.tiktoken")
    words = ("tokenizer", "encode", "made.tiktoken", "x", "--json", "--pattern", "gpt2", "--special-tokens")
    assert cli(*words, "<|a|>", "<|b|>=5").status == 2
    assert cli(*words, "<|a=1|>", "<|b|>").status == 0
    assert cli(*words).status == 0
    assert main([*words[:5], "--pattern", "gpt2"]) == 2


# ---- bench -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bench_measures_the_text_that_it_is_given(cli, tok, tmp_path):
    (tmp_path / "text").write_text("the cat sat on the mat\n" * 200)
    said = cli("tokenizer", "bench", tok, "--file", tmp_path / "text", "--passes", "1", "--json")
    assert said.status == 0
    body = said.json()
    assert body["bytes"] == 23 * 200
    assert body["tokens"] == len(Tokenizer.load(tok).encode("the cat sat on the mat\n" * 200))
    assert len(body["mb_per_second"]) == 6
    assert all(speed > 0 for speed in body["mb_per_second"].values())


def test_train_says_what_it_repaired(cli, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"hello \xff\xfe world " * 300)
    words = ("tokenizer", "train", "--data.source", tmp_path / "a.txt", "--tokenizer.vocab-size", "265")
    said = cli(*words, "--out", tmp_path / "tok", "--json")
    assert said.status == 0
    assert said.json()["documents_repaired"] == 1
    assert "1 of 1 documents held bytes that are no UTF-8" in said.err
    assert cli(*words, "--out", tmp_path / "strict", "--strict").status == 2


def test_decode_writes_every_byte(cli, tok, tmp_path):
    raw = bytes(range(256)) * 2
    path = tmp_path / "raw"
    said = cli("tokenizer", "decode", tok, *Tokenizer.load(tok).encode_ordinary("x"), *raw, "--out", path, "--json")
    assert said.json() == {"out": str(path), "bytes": len(raw) + 1}
    assert path.read_bytes() == b"x" + raw
    assert cli("tokenizer", "decode", tok, "1", "--out", path).status == 2


def test_decode_writes_every_byte_to_standard_output_too(tok, tmp_path):
    done = run("decode TOK 104 200 10 --out -", tok)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"h\xc8\n", b"")
    done = run("decode TOK 104 --out - --json", tok)
    assert done.returncode == 2
    assert b"--out: expected a file beside --json" in done.stderr


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["encode", "x", "--numpy", "-"], "--numpy: expected a file, found -; ./-"),
        (["inspect", "x", "--html", "-"], "--html: expected a file, found -; ./-"),
        (["convert", "-", "--format", "tokenizer.json"], "TO: expected a new file or directory, found -; ./-"),
    ],
)
def test_no_file_is_named_as_standard_output_is(cli, tok, tmp_path, words, names):
    said = cli("tokenizer", words[0], tok, *words[1:])
    assert said.status == 2
    assert names in said.err
    assert list((tmp_path / "here").iterdir()) == []


def test_bench_says_which_engine_it_measured(cli, tok, tmp_path):
    (tmp_path / "a.txt").write_text("some words " * 100)
    for engine in ("compiled", "portable"):
        said = cli("tokenizer", "bench", tok, "--file", tmp_path / "a.txt", "--passes", "1", "--engine", engine, "--json")
        assert said.json()["engine"] == engine


def test_bench_measures_what_there_is_and_says_so(cli, tok, tmp_path, monkeypatch):
    from jaxlm.tokenizer import choosing

    (tmp_path / "a.txt").write_text("some words " * 100)
    words = ("tokenizer", "bench", tok, "--file", tmp_path / "a.txt", "--passes", "1")
    choosing.ENCODING.require()
    assert "\nengine: compiled\n" in cli(*words).out

    def missing(self, *, make):
        raise ModuleNotFoundError("No module named 'numba'")

    monkeypatch.setattr(choosing.Kernels, "are_loaded", False)
    monkeypatch.setattr(choosing.Kernels, "_load", missing)
    for chosen in ((), ("--engine", "auto")):
        said = cli(*words, *chosen)
        assert said.status == 0
        assert "engine: portable, since compiled code cannot be had: No module named 'numba'\n" in said.out
    assert cli(*words, "--json").json()["engine"] == "portable"
    assert cli(*words, "--engine", "portable").out.count("engine: portable\n") == 1
    said = cli(*words, "--engine", "compiled")
    assert said.status == 2
    assert "pip install numba, or use 'auto'" in said.err


def test_a_path_without_anything_is_no_artifact(cli, tok, tmp_path):
    said = cli("tokenizer", "diff", tok, tmp_path / "missing.json")
    assert said.status == 2
    assert "missing.json: expected a tokenizer (a directory of jaxlm, or a file of another project), found nothing" in said.err


def run(words: str, tok, cwd=None, **environment: str) -> subprocess.CompletedProcess:
    command = f"{sys.executable} -m jaxlm tokenizer {words}".replace("TOK", str(tok))
    options = {"env": {**os.environ, **environment}, "cwd": cwd, "timeout": 100}
    return subprocess.run(command, shell=True, capture_output=True, check=False, **options)


def test_streams_that_are_closed_or_not_utf_8_give_no_traceback(tok):
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    ids = " ".join(map(str, "東".encode()))
    done = run(f"decode TOK {ids}", tok, **plain)
    assert (done.returncode, done.stdout) == (0, b"\\u6771\n")
    done = run("encode TOK '東'", tok, **plain)
    assert (done.returncode, done.stdout.decode().split()) == (0, ids.split())
    done = run("inspect TOK '東'", tok, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    done = run("encode TOK - <&-", tok)
    assert done.returncode == 2
    assert b"expected standard input, found it closed" in done.stderr


@pytest.mark.parametrize(
    "words", ["encode TOK hi", "encode TOK hi --json", "decode TOK 104 --out -", "--help", "inspect TOK hi"]
)
def test_a_closed_standard_output_is_no_success(tok, words):
    done = run(f"{words} >&-", tok)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == (
        "jaxlm: error: standard output: expected it open, found it closed; >/dev/null throws it away"
    )
    assert b"Traceback" not in done.stderr


def test_a_file_does_not_get_the_number_of_a_stream_that_is_closed(tok, tmp_path):
    done = run(f"encode TOK --file {tmp_path / 'none'} >&- <&- 2>&-", tok)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
    code = "import os; from jaxlm.cli.main import main; main(['tran']); os._exit(os.open(os.devnull, os.O_RDONLY) <= 2)"
    assert subprocess.run(f'{sys.executable} -c "{code}" <&- >&- 2>&-', shell=True, check=False).returncode == 0


@pytest.mark.parametrize("words", ["encode TOK hi", "decode TOK 104", "decode TOK 104 --out -", "convert TOK OUT/x.json"])
def test_an_output_that_takes_nothing_is_sent_elsewhere(tok, tmp_path, words):
    for output, found in ((">/dev/full", "No space left on device"), ("1</dev/null", "Bad file descriptor")):
        done = run(f"{words} {output}".replace("OUT", str(tmp_path / found[:2])), tok, PYTHONUNBUFFERED="")
        assert done.returncode == 1
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"jaxlm: error: standard output: expected it to take what is printed, found: {found}; send it")
        assert "--out" not in line


LATIN_1 = "en_US.ISO-8859-1"


@pytest.fixture(params=["ASCII", LATIN_1])
def locale(request, tmp_path_factory):
    """The variables of a locale that is not UTF-8."""
    if request.param == "ASCII":
        return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if shutil.which("localedef") is None:
        pytest.skip("no localedef to make a locale with")
    folder = tmp_path_factory.getbasetemp() / "locales"
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / LATIN_1], capture_output=True)
    if not (folder / LATIN_1).exists():
        pytest.skip(f"localedef cannot make {LATIN_1}: {made.stderr!r}")
    return {"LOCPATH": str(folder), "LC_ALL": LATIN_1}


def test_in_any_locale_paths_are_found_and_text_is_utf_8(tok, tmp_path, locale):
    loaded = Tokenizer.load(tok)
    shutil.copytree(tok, tmp_path / "tök")
    (tmp_path / "naïve.md").write_text("naïve 東\n", encoding="utf-8")
    place = {"PYTHONPATH": str(Path(verb.__file__).parents[2]), **locale}

    def ids(words: str) -> list[int]:
        done = run(f"{words} --json", tok, cwd=tmp_path, **place)
        assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr
        return json.loads(done.stdout).get("token_ids")

    assert ids("encode tök 'naïve 東'") == loaded.encode("naïve 東")
    assert ids("encode TOK --file naïve.md") == loaded.encode("naïve 東\n")
    ids("decode tök 104 105 --out ü.txt")
    assert (tmp_path / "ü.txt").read_text() == "hi"
    ids("inspect tök é --html é.html")
    assert "<title>Tokenizer tök</title>" in (tmp_path / "é.html").read_text(encoding="utf-8")
    ids("train --out tœk --data.source naïve.md --tokenizer.vocab-size 258 --tokenizer.special-tokens '<é>'")
    assert Tokenizer.load(tmp_path / "tœk").special_tokens == ("<é>",)
    assert ids("encode tœk --allow-special '<é>'") == [257]
    done = run("encode töx hi", tok, cwd=tmp_path, **place)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
