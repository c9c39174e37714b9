"""Shards in another language than the tokenizer's are refused, with the place; what is in its language passes."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import TokenStream, build_shards, require_agreement
from jaxlm.data import agreement as module
from jaxlm.tokenizer import Tokenizer


def build(folder, texts, tokenizer):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    cfg = DataConfig(source=(str(folder / "a.jsonl"),), val_fraction=0.3, shard_tokens=1024)
    return build_shards(cfg, tokenizer, folder / "shards")


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts, tokenizer):
    return build(tmp_path_factory.mktemp("data"), [*texts, "with <|endoftext|> in it", "x"], tokenizer)


def in_memory(data, documents, dtype="<u2"):
    """`data` with other training documents (lists of ids), and the manifest as it was."""
    starts = np.cumsum([0, *map(len, documents)])
    stream = TokenStream((np.concatenate(documents).astype(dtype),), np.array([0]), starts)
    return dataclasses.replace(data, train=stream)


def documents(data):
    return [data.train.document(i) for i in range(data.train.documents)]


@pytest.mark.parametrize("chunk", [1 << 20, 7, 1])
def test_shards_of_the_tokenizer_agree_however_they_are_cut_into_chunks(data, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CHUNKS", 1 << 30)
    train, val = require_agreement(data, tokenizer)
    assert (train.tokens, val.tokens) == (train.of, val.of) == (len(data.train), len(data.val))
    assert (train.documents, val.documents) == (min(32, data.train.documents), min(32, data.val.documents))


def test_other_special_tokens_gaps_and_long_documents_agree_as_well(tmp_path, texts, monkeypatch):
    tokenizer = Tokenizer.from_merges([(b"a", b"b")], {"<|end|>": 400, "<|pad|>": 500}, ids=[*range(256), 300])
    data = build(tmp_path, [*texts[:20], "<|pad|>"], tokenizer)
    assert require_agreement(data, tokenizer)[0].documents > 0
    monkeypatch.setattr(module, "LONG", 3)
    assert require_agreement(data, tokenizer)[1].documents == 0


def test_of_very_many_ids_an_even_sample_is_looked_at_and_that_is_said(data, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "CHUNKS", 20)
    train, _ = require_agreement(data, tokenizer)
    assert 8 * 19 < train.tokens <= 160
    assert f"train: {train.tokens} of {len(data.train):,} ids looked at, 32 documents" in train.words()
    wrong = in_memory(data, [np.roll(ids, 1) for ids in documents(data)])
    with pytest.raises(ContractError, match="at train token"):
        require_agreement(wrong, tokenizer)


def swapped(tokenizer, a=b" 1", b=b" 2"):
    """The tokenizer with the ids of two merges of equal length in exchange: same size, same special tokens."""
    ids, made = tokenizer.vocabulary.ids[: 256 + len(tokenizer.merges)].tolist(), [x + y for x, y in tokenizer.merges]
    i, j = (256 + made.index(text) for text in (a, b))
    ids[i], ids[j] = ids[j], ids[i]
    return Tokenizer.from_merges(tokenizer.merges, tokenizer.special_ids, ids=ids)


def test_what_is_wrong_is_named(data, tokenizer):
    bos, real = tokenizer.bos_id, documents(data)
    special = tokenizer.encode("<|endoftext|>", allowed_special="all")
    faults = {
        "first one of every document, found": [
            [ids - 1 for ids in real],
            [ids[1:] for ids in real],
            [ids[1:] if i == 30 else ids for i, ids in enumerate(real)],
        ],
        "last one of every document, found": [[ids[:-1] for ids in real], [np.roll(ids, 1) for ids in real]],
        "ids of text between the borders of documents, none of a special token, found": [
            [np.insert(ids, 0, bos) for ids in real],
            [np.append(ids, bos) for ids in real],
            [np.insert(ids, 3, special) if i == 5 else ids for i, ids in enumerate(real)],
        ],
        "ids of the tokenizer, in 0..299, found 300 at": [[ids + 1 for ids in real]],
        "bytes of text in train, as its documents had, found": [real[:-1], [*real, real[0]]],
    }
    for message, wrong in faults.items():
        for found in wrong:
            with pytest.raises(ContractError, match=f"'data' is broken at {data.path}: .*{message}.*build them again"):
                require_agreement(in_memory(data, found), tokenizer)
    require_agreement(in_memory(data, real), tokenizer)


def test_documents_are_encoded_again(data, tokenizer):
    rng = np.random.default_rng(0)
    shuffled = [np.concatenate([ids[:1], rng.permutation(ids[1:-1]), ids[-1:]]) for ids in documents(data)]
    with pytest.raises(
        ContractError, match=r"from place \d+ on, the ids of its text|ids that stand for text in train document"
    ):
        require_agreement(in_memory(data, shuffled), tokenizer)
    plain = [np.array([299, *tokenizer.decode_bytes(ids[1:-1]), 299]) for ids in documents(data)]
    with pytest.raises(ContractError, match="from place 1 on, the ids of its text"):
        require_agreement(in_memory(data, plain), tokenizer)


def test_another_tokenizer_of_the_same_size_is_refused(data, tokenizer):
    with pytest.raises(ContractError, match="train"):
        require_agreement(data, swapped(tokenizer))
    with pytest.raises(ContractError, match="bytes of text in train"):
        require_agreement(data, Tokenizer.from_merges([*tokenizer.merges[:-9], *((b"q", bytes([i])) for i in range(9))]))


def test_ids_of_too_narrow_a_type_are_refused(tmp_path, texts):
    pairs = [(bytes([i >> 8]), bytes([i & 255])) for i in range(65536)]
    tokenizer = Tokenizer.from_merges(pairs)
    data = build(tmp_path, texts[:20], tokenizer)
    require_agreement(data, tokenizer)
    with pytest.raises(ContractError, match="expected id 65792 as the first one of every document, found 256 at train token 0"):
        require_agreement(in_memory(data, documents(data), "<u2"), tokenizer)


def test_a_text_that_was_changed_before_it_was_encoded_is_refused(tmp_path, texts, tokenizer, monkeypatch):
    real = Tokenizer.encode_document
    monkeypatch.setattr("jaxlm.data.shards.require_document", lambda *args, **kwargs: None)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_document", lambda self, text: real(self, text.replace("ï", "i")))
        data = build(tmp_path, texts, tokenizer)
    with pytest.raises(ContractError, match="bytes of text in train, as its documents had"):
        require_agreement(data, tokenizer)


def test_an_encoder_that_agrees_with_itself_and_merges_nothing_is_refused(tmp_path, texts, tokenizer, monkeypatch):
    def bytes_alone(self, text):
        return np.array([self.bos_id, *self.vocabulary.ids[list(text.encode())], self.eos_id], np.int32)

    monkeypatch.setattr(Tokenizer, "encode_document", bytes_alone)
    data = build(tmp_path, texts, tokenizer)
    with pytest.raises(ContractError, match=r"expected by Python's encoder in train document 0, from place \d+ on, the ids"):
        require_agreement(data, tokenizer)


def test_documents_that_are_all_long_are_encoded_by_python_too(tmp_path, texts, tokenizer, monkeypatch):
    data = build(tmp_path, texts, tokenizer)
    encoded = []
    monkeypatch.setattr(module, "PLAIN", 1)
    monkeypatch.setattr(module, "REACHES", ())

    class Apart(module.Portable):  # the tokenizer's own engine may be one of these as well
        def encode(self, text):
            encoded.append(text)
            return super().encode(text)

    monkeypatch.setattr(module, "Portable", Apart)
    assert [found.documents for found in require_agreement(data, tokenizer)] == [32, min(32, data.val.documents)]
    assert len(set(encoded)) == 2  # the shortest of each split


LONG = [" ".join(f"{word} naïve words, 你好 \U0001f600 the {word * word}th text\n" for word in range(n)) for n in (90, 300)]


def in_pieces(real, size, over):
    """Documents of more than `over` characters are encoded in pieces of `size`."""

    def encode_document(self, text):
        if len(text) <= over:
            return real(self, text)
        ids = [self.encode_to_numpy(text[at : at + size]) for at in range(0, len(text), size)]
        return np.concatenate([[self.bos_id], *ids, [self.eos_id]]).astype(np.int32)

    return encode_document


def test_long_documents_are_encoded_by_python_as_far_as_there_is_time(tmp_path, texts, tokenizer, monkeypatch):
    real = Tokenizer.encode_document
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    for folder in (whole, cut):
        folder.mkdir()
    healthy = build(whole, [*texts, *LONG], tokenizer)
    monkeypatch.setattr(Tokenizer, "encode_document", in_pieces(real, 1001, 2000))
    data = build(cut, [*texts, *LONG], tokenizer)
    words = r"expected by Python's encoder in the text of (train|val) document \d+, a long one, from place \d+ on"
    for reaches in (module.REACHES, (1 << 13, 1 << 13), (6000, 3000)):
        monkeypatch.setattr(module, "REACHES", reaches)
        with pytest.raises(ContractError, match=words):
            require_agreement(data, tokenizer)
    for reach in [*range(1, 40), 700, 701, 702, 703]:  # wherever the text is cut
        monkeypatch.setattr(module, "REACHES", (reach, reach + 40))
        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "encode_document", real)
            require_agreement(healthy, tokenizer)


@pytest.mark.parametrize("text", ["a" * 5000, "\U0001f600" * 900, " " * 4000, "ab" * 3000 + "\n" + "x" * 9])
def test_a_long_document_without_a_place_to_cut_is_no_fault(tmp_path, texts, tokenizer, monkeypatch, text):
    data = build(tmp_path, [*texts, text], tokenizer)
    for reach in (777, 1 << 19):
        monkeypatch.setattr(module, "REACHES", (reach,))
        require_agreement(data, tokenizer)


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_stream_that_is_read_with_an_offset_is_refused(data, tokenizer, monkeypatch, offset):
    real = TokenStream.slice
    monkeypatch.setattr(TokenStream, "slice", lambda self, begin, end: real(self, begin + offset, end + offset))
    with pytest.raises(ContractError, match=r"expected id 299 as the first one|expected train tokens 0"):
        require_agreement(data, tokenizer)


def test_a_run_refuses_them_before_it_trains(tmp_path, monkeypatch):
    from jaxlm.run import Layout
    from jaxlm.train.prepare import claim, prepare, resolve
    from tests.conftest import tiny_config

    layout = Layout(tmp_path / "run")
    layout.path.mkdir()
    cfg = claim(resolve(tiny_config(), layout), layout)
    said = []
    prepare(cfg, layout, say=said.append)
    assert not any("looked at" in line for line in said)
    monkeypatch.setattr(Tokenizer, "byte_lengths", property(lambda self: self.vocabulary.byte_lengths() + 1))
    with pytest.raises(ContractError, match="bytes of text in train"):
        prepare(cfg, layout, say=said.append)
