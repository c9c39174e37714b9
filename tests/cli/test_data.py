"""`jaxlm data`: shards built from text, and shown."""

from __future__ import annotations

import pytest

from jaxlm.data import open_shards


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"text {number}\n" * number)
    return folder


def test_build_writes_shards_that_show_and_open_find(cli, finished, texts, tmp_path):
    words = ("--tokenizer", finished / "tokenizer", "--data.source", texts, "--out", tmp_path / "shards")
    built = cli("data", "build", "--data.val-fraction", "0.3", *words, "--json")
    assert built.status == 0
    shards = open_shards(tmp_path / "shards")
    assert built.json()["fingerprint"] == shards.manifest.fingerprint
    assert cli("data", "show", tmp_path / "shards", "--json").json() == built.json()
    facts = built.json()["facts"]
    assert facts["splits"]["train"]["documents"] + facts["splits"]["val"]["documents"] == 29
    assert facts["curation"]["empty"] == 1
    assert facts["vocab_size"] == 300


def test_show_fits_80_columns(cli, finished):
    said = cli("data", "show", finished / "data")
    first, *rest = said.out.splitlines()
    assert first.startswith(f"{finished / 'data'}: ")
    assert [line.split()[0] for line in rest] == ["train", "val", "read"]
    assert max(map(len, rest)) <= 80
    assert "stopped at --data.max-bytes" in said.out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("build", "--out", "shards"), ["--tokenizer"]),
        (("build", "--tokenizer", "TOK"), ["--out"]),
        (("build", "--tokenizer", "TOK", "--out", "shards", "--data.source", "nowhere"), ["nowhere"]),
        (("build", "--tokenizer", "TOK", "--out", "shards", "--data.val-fraction", "2"), ["--data.val-fraction", "2"]),
        (("show",), ["the directory of the shards"]),
        (("show", "nowhere"), ["nowhere"]),
        (("show", "TOK"), ["kind data", "kind tokenizer"]),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(cli, finished, words, names, tmp_path):
    said = cli("data", *(finished / "tokenizer" if word == "TOK" else word for word in words))
    assert said.status == (1 if words == ("show", "TOK") else 2)
    assert said.err.count("\n") == 1
    assert all(name in said.err for name in names), said.err
    assert list((tmp_path / "here").iterdir()) == []


def test_a_truncated_shard_is_broken(cli, run_copy):
    path = run_copy / "data" / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    said = cli("data", "show", run_copy / "data")
    assert said.status == 1
    assert str(path) in said.err
    assert said.out == ""
