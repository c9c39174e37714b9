"""`jaxlm tokenizer`: train, encode, decode."""

from __future__ import annotations

import pytest

from jaxlm.tokenizer import Tokenizer, train_tokenizer


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
    assert said.json() == {"tokenizer": str(tmp_path / "tok"), "vocab_size": 262, "fingerprint": made.fingerprint}
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
        (("train", "--out", "tok", "configs/tiny.py", "more"), ["more", "one config"]),
        (("train", "--out", "tok", "--model.n-layers", "2"), ["--model.n-layers"]),
        (("encode", "TOK"), ["a tokenizer directory and text"]),
        (("encode", "nowhere", "x"), ["nowhere", "tokenizer"]),
        (("encode", "TOK", "x", "--data.strict"), ["--data.strict"]),
        (("decode", "TOK", "300"), ["300", "0..299"]),
        (("decode", "TOK", "x"), ["x: expected an id"]),
    ],
)
def test_mistakes_are_named(cli, finished, words, names, tmp_path):
    said = cli("tokenizer", *(finished / "tokenizer" if word == "TOK" else word for word in words))
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert all(name in said.err for name in names)
    assert list((tmp_path / "here").iterdir()) == []
