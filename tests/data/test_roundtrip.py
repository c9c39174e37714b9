"""A document's ids stand for its text, or the document is named and nothing is written."""

import json

import numpy as np
import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import build_shards
from jaxlm.data.roundtrip import require_document
from jaxlm.tokenizer import Tokenizer

TEXT = "naïve <|endoftext|> words: 你好 \U0001f600 \x00\r\n"


def holds(tokenizer, ids, text=TEXT):
    require_document(tokenizer, np.asarray(ids, np.int32), text.encode(), origin="a.jsonl:3")


@pytest.mark.parametrize("text", [TEXT, "a", "<|endoftext|>", "\ufeff\ufffd", " " * 5000])
def test_the_ids_of_a_text_stand_for_it(tokenizer, text):
    holds(tokenizer, tokenizer.encode_document(text), text)


def test_several_special_tokens_and_ids_with_gaps_are_as_good():
    tokenizer = Tokenizer.from_merges([(b"a", b"b")], {"<|end|>": 400, "<|pad|>": 500}, ids=[*range(256), 300])
    holds(tokenizer, tokenizer.encode_document("ab <|pad|> <|end|>"), "ab <|pad|> <|end|>")


def test_what_is_wrong_with_a_document_is_said_with_its_origin(tokenizer):
    ids, bos = tokenizer.encode_document(TEXT).tolist(), tokenizer.bos_id
    merged = [bos, *tokenizer.encode(TEXT, allowed_special="all"), bos]
    faults = {
        "begins with id 299": [ids[1:], ids[:-1], ids[1:-1], [bos], [], [0, *ids[1:]]],
        "no special token between": [[bos, *ids], [*ids, bos], merged],
        "at byte 0 b'na.*found 39 bytes, there b": [[bos, *(i + 1 for i in ids[1:-1]), bos]],
        f"{len(TEXT.encode())} bytes, at byte": [[bos, *ids[2:]], [*ids[:-2], bos], [*ids[:3], *ids[4:]]],
        "ids of the tokenizer, found expected ids": [[bos, 300, bos], [bos, 1 << 20, bos]],
    }
    for message, wrong in faults.items():
        for found in wrong:
            with pytest.raises(ContractError, match=rf"'data' is broken at a\.jsonl:3: .*{message}"):
                holds(tokenizer, found)


def encoding_otherwise(kind):
    """`Tokenizer.encode_document` with a fault in it."""
    real = Tokenizer.encode_document
    return {
        "normalised": lambda self, text: real(self, text.replace("ï", "i")),
        "stripped": lambda self, text: real(self, text.rstrip()),
        "merged": lambda self, text: np.array([self.bos_id, *self.encode(text, "all"), self.eos_id], np.int32),
        "no bos": lambda self, text: real(self, text)[1:],
        "no eos": lambda self, text: real(self, text)[:-1],
        "off by one": lambda self, text: real(self, text) - 1,
    }[kind]


@pytest.mark.parametrize("kind", ["normalised", "stripped", "merged", "no bos", "no eos", "off by one"])
def test_a_document_encoded_otherwise_stops_the_build_and_nothing_is_written(tmp_path, texts, tokenizer, monkeypatch, kind):
    lines = [json.dumps({"text": text}) for text in [*texts[:5], "with <|endoftext|> in it \n"]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cfg = DataConfig(source=(str(tmp_path / "a.jsonl"),), val_fraction=0.3)
    monkeypatch.setattr(Tokenizer, "encode_document", encoding_otherwise(kind))
    first = 6 if kind == "merged" else 1
    with pytest.raises(ContractError, match=rf"'data' is broken at .*a\.jsonl:{first}: "):
        build_shards(cfg, tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
