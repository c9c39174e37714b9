"""Documents against their sources: what was read as it stands passes, what was changed on the way is refused."""

import gzip
import json
import re

import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import build_shards, documents, read_documents, sources
from jaxlm.data.sources import Sources, require_as_it_stands

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

TEXTS = [
    "first",
    "def f():\n    return 1\n\n",
    "第三 \U0001f600  two spaces",
    "a \u2028 b \x85 c\r\n",
    "\ufefflast \ufffd",
    "end",
]


def write(folder, kind):
    """A source with the texts, and the config that reads it."""
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
    path = folder / f"a{kind}"
    if kind == ".parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=4)
    elif kind == ".jsonl.zst":  # frames that end within lines
        path.write_bytes(zstandard.compress(lines[:50]) + zstandard.compress(lines[50:]))
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == ".JSONL":
        path.write_bytes(
            b"\xef\xbb\xbf" + lines + b'\n\n{"text": "half \\ud83d", "more": "\xff"}\n{"text": "x", "more": "\xff"}\n'
        )
    elif kind == ".txt":
        path.write_bytes("<|end|>\n".join(TEXTS).encode() + b"<|end|>\n\xff")
    else:
        path.mkdir()
        for number, text in enumerate(TEXTS):
            (path / f"{number}.py").write_bytes(text.encode())
    return DataConfig(source=(str(path),), separator=r"<|end|>\n")


KINDS = [".jsonl", ".JSONL", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", "folder"]


def changed(document):
    return document._replace(text=re.sub(r"\s", " ", document.text) + " ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", [1 << 22, 1000, 20, 7])
def test_every_document_is_found_where_it_stands(tmp_path, kind, reach, monkeypatch):
    monkeypatch.setattr(sources, "REACH", reach)
    cfg = write(tmp_path, kind)
    found = list(read_documents(cfg))
    assert len(found) >= len(TEXTS)
    for document in found:
        require_as_it_stands(document, cfg)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_was_changed_on_the_way_is_refused(tmp_path, kind):
    cfg = write(tmp_path, kind)
    looked = [document for document in list(read_documents(cfg))[:3] if "\ufffd" not in document.text]
    for document in looked:
        with pytest.raises(
            ContractError, match=f"expected the text of its source, {len(document.text.encode())} bytes, at byte"
        ):
            require_as_it_stands(changed(document), cfg)


def test_of_a_long_text_the_beginning_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "REACH", 100)
    (tmp_path / "a.txt").write_text("é" * 1000)
    cfg = DataConfig(source=(str(tmp_path / "a.txt"),))
    (document,) = read_documents(cfg)
    require_as_it_stands(document, cfg)
    with pytest.raises(ContractError, match="100 bytes, at byte 0"):
        require_as_it_stands(document._replace(text="e" * 1000), cfg)
    with pytest.raises(ContractError, match="found 4 bytes"):
        require_as_it_stands(document._replace(text="éé"), cfg)


def test_the_standard_library_is_found():
    cfg = DataConfig(source=("stdlib:",), max_bytes=3_000_000)
    found = list(read_documents(cfg))
    for document in found:
        require_as_it_stands(document, cfg)
    assert {".py" in document.origin for document in found} == {True, False}
    for document in (found[0], found[-1]):
        with pytest.raises(ContractError, match="the text of its source"):
            require_as_it_stands(document._replace(text=document.text.replace("    ", "")), cfg)


def test_shards_are_not_built_of_texts_that_were_cleaned(tmp_path, tokenizer, monkeypatch):
    cfg = write(tmp_path, "folder")
    real = documents._text
    monkeypatch.setattr(documents, "_text", lambda *arguments: "\n".join(map(str.strip, real(*arguments).split("\n"))))
    with pytest.raises(ContractError, match=r"1\.py:1: expected the text of its source, 23 bytes, at byte 9 .* found 19 bytes"):
        build_shards(cfg, tokenizer, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_what_is_longer_than_all_before_is_looked_up_wherever_it_stands(tmp_path):
    texts = ["some text"] * 4 + ["a text that is longer", "some text", "short"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = DataConfig(source=(str(tmp_path / "a.jsonl"),))
    given = list(read_documents(cfg))
    for at, looked_at in ((0, True), (2, False), (4, True), (5, False), (6, False)):
        read = [document._replace(text=document.text[:-1]) if i == at else document for i, document in enumerate(given)]
        looked_up, refused = Sources(cfg), []
        for document in read:
            try:
                looked_up.require(document)
            except ContractError:
                refused.append(document)
        assert len(refused) == looked_at, at
