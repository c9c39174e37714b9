"""The tokenizer on the disk: the same after loading; refused after any change of a byte, a fact, or the encoding itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import regex

from jaxlm.contract import ContractError, FileRecord, InputError, Manifest
from jaxlm.tokenizer import Tokenizer, train_tokenizer
from jaxlm.tokenizer import portable as portable_module
from jaxlm.tokenizer import pretoken as pretoken_module
from jaxlm.tokenizer.artifact import FILE, PROBE
from jaxlm.tokenizer.merging import TOKEN


@pytest.fixture(scope="module")
def saved(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "tokenizer"
    small.save(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_loaded_tokenizer_is_the_saved_one(trained, stdlib_texts, tmp_path):
    trained.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.manifest == trained.manifest == Manifest.load(tmp_path / "tokenizer", "tokenizer")
    assert loaded.fingerprint == trained.fingerprint
    for name in ("vocab", "merges", "special_tokens", "pattern", "special_ids"):
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.encode(stdlib_texts[-1]) == trained.encode(stdlib_texts[-1])
    assert sorted(p.name for p in (tmp_path / "tokenizer").iterdir()) == ["bpe.json", "manifest.json"]


def test_a_saved_tokenizer_is_written_twice_the_same_and_never_over(saved, small, tmp_path):
    small.save(tmp_path / "again")
    for name in (FILE, "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    with pytest.raises(InputError, match="new or empty directory"):
        small.save(saved)


def test_facts_say_what_the_next_layers_rely_on(trained):
    facts = trained.manifest.facts
    assert facts["vocab_size"] == 1500
    assert facts["pattern"] == trained.pattern
    assert facts["special_tokens"] == {"<|endoftext|>": 1498, "<|user turn|>": 1499}
    assert facts["bos_id"] == facts["eos_id"] == trained.bos_id == 1498
    assert "<|endoftext|>" in facts["document_rule"]
    digests = {facts[name] for name in ("pattern_sha256", "merges_sha256", "probe_sha256", "bytes_per_id_sha256")}
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_the_probe_is_hard_and_comes_back(trained):
    assert trained.decode(trained.encode_ordinary(PROBE)) == PROBE
    assert len({c for c in PROBE if not c.isascii()}) > 100
    for part in ("\r\n", "  ", "'s", "'LL", "<|endoftext|>", "\u200d", "\u0301", "1234"):
        assert part in PROBE


def test_one_changed_bit_in_any_byte_is_refused(saved, tmp_path):
    checked = 0
    for name in (FILE, "manifest.json"):
        raw = (saved / name).read_bytes()
        copy = Path(shutil.copytree(saved, tmp_path / f"flip-{name}"))
        for at in range(len(raw)):
            changed = bytearray(raw)
            changed[at] ^= 1 << (at % 8)
            (copy / name).write_bytes(changed)
            with pytest.raises(ContractError) as error:
                Tokenizer.load(copy)
            assert str(copy) in str(error.value)
            checked += 1
        (copy / name).write_bytes(raw)
        Tokenizer.load(copy)
    assert checked > 1000


@pytest.mark.parametrize("name", [FILE, "manifest.json"])
def test_a_missing_byte_or_an_added_one_is_refused(copy, name):
    raw = (copy / name).read_bytes()
    for changed in (raw[:-1], raw[1:], raw + b"\n", b""):
        (copy / name).write_bytes(changed)
        with pytest.raises(ContractError):
            Tokenizer.load(copy)


def test_missing_files_are_named(copy, tmp_path):
    (copy / FILE).unlink()
    with pytest.raises(ContractError, match=r"bpe\.json.*no such file"):
        Tokenizer.load(copy)
    with pytest.raises(InputError, match="expected a tokenizer artifact"):
        Tokenizer.load(tmp_path / "nowhere")


def resign(directory: Path, content: bytes | None = None, **facts: object) -> None:
    """Write a manifest that is consistent in itself, around another content or other facts."""
    old = Manifest.load(directory)
    if content is not None:
        (directory / FILE).write_bytes(content)
    raw = (directory / FILE).read_bytes()
    files = {FILE: FileRecord(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))}
    Manifest(kind=old.kind, facts={**old.facts, **facts}, files=files, provenance=old.provenance).save(directory)


def test_other_merges_under_a_consistent_manifest_are_refused(copy):
    body = json.loads((copy / FILE).read_bytes())
    body["merges"][-1] = [b"x".hex(), b"y".hex()]
    resign(copy, json.dumps(body).encode())
    with pytest.raises(ContractError, match=r"bytes_per_id_sha256|merges_sha256"):
        Tokenizer.load(copy)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"\xff", b'{"format": 1, "pattern": "gpt2", "special_tokens": [], "merges": [["6", "61"]]}',
     b'{"format": 1, "pattern": "other", "special_tokens": [], "merges": []}',
     b'{"format": 1, "pattern": "gpt2", "special_tokens": ["a"], "merges": []}',
     b'{"format": 1, "pattern": "gpt2", "special_tokens": [], "merges": [["6161", "61"]]}'],
)  # fmt: skip
def test_what_is_no_tokenizer_under_a_consistent_manifest_is_refused(copy, content):
    resign(copy, content)
    with pytest.raises(ContractError, match=r"bpe\.json: expected a tokenizer"):
        Tokenizer.load(copy)


def test_the_same_tokenizer_in_other_bytes_is_refused(copy):
    resign(copy, json.dumps(json.loads((copy / FILE).read_bytes())).encode())
    with pytest.raises(ContractError, match="expected files "):
        Tokenizer.load(copy)


@pytest.mark.parametrize("name", ["vocab_size", "document_rule", "probe_sha256", "bos_id", "unheard_of"])
def test_a_fact_that_the_tokenizer_does_not_keep_is_named(copy, name):
    resign(copy, **{name: "other"})
    with pytest.raises(ContractError, match=f"expected {name} other"):
        Tokenizer.load(copy)


def test_an_artifact_of_another_kind_is_refused(copy):
    old = Manifest.load(copy)
    Manifest(kind="data", facts=old.facts, files=old.files).save(copy)
    with pytest.raises(ContractError, match="expected kind tokenizer, found kind data"):
        Tokenizer.load(copy)


def rightmost(ids: list[int], product: dict[tuple[int, int], int]) -> list[int]:
    """Like `merge`, but of equal pairs it takes the last: the kind of change that only rare texts show."""
    ids = list(ids)
    while found := [(product[pair], -at) for at, pair in enumerate(pairwise(ids)) if pair in product]:
        new, at = min(found)
        ids[-at : -at + 2] = [new & TOKEN]
    return ids


def test_a_change_of_the_merging_code_is_refused(saved):
    with (
        mock.patch.object(portable_module, "merge", rightmost),
        pytest.raises(ContractError, match=r"expected probe_sha256 .* encodes otherwise"),
    ):
        Tokenizer.load(saved)
    Tokenizer.load(saved)


@pytest.mark.parametrize("drift", ["later letters", "contractions", "separators"])
def test_a_change_of_the_boundaries_is_refused_even_without_merges(drift, tmp_path):
    """With no merges the ids of any text are its bytes, however it is split."""
    tok = Tokenizer.from_merges([])
    tok.save(tmp_path / "tokenizer")
    pattern = pretoken_module.PATTERNS["gpt2"]
    if drift == "later letters":
        patch = mock.patch.object(pretoken_module, "represent", lambda text: text)
    else:
        other = (
            pattern.replace("ll|", "") if drift == "contractions" else pattern.replace("White_Space}+(?!", "White_Space}(?!")
        )
        assert other != pattern
        patch = mock.patch.object(pretoken_module, "compiled", return_value=regex.compile(other, regex.V1))
    with patch, pytest.raises(ContractError, match="probe_sha256"):
        Tokenizer.load(tmp_path / "tokenizer")


def test_training_survives_saving(tmp_path):
    tok = train_tokenizer(["some text and some more text"] * 3, vocab_size=262)
    tok.save(tmp_path / "tokenizer")
    assert Tokenizer.load(tmp_path / "tokenizer").manifest.provenance == tok.manifest.provenance


def test_ids_that_do_not_follow_from_the_order_are_kept(tmp_path):
    ids = [*range(300, 556), 7, 9]
    tok = Tokenizer.from_merges([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")][:2], {"<|z|>": 8, "<|y|>": 900}, ids=ids)
    tok.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.manifest == tok.manifest
    assert (loaded.vocab_size, loaded.bos_id) == (901, 8)
    assert loaded.encode("abbc<|z|>a", allowed_special="all") == [7, 9, 8, 300 + ord("a")]
    assert loaded.decode([7, 9, 8, 397]) == "abbc<|z|>a"
    assert loaded.byte_lengths[[7, 8, 9, 10, 300]].tolist() == [2, 0, 2, 0, 1]
    assert tok.fingerprint != Tokenizer.from_merges(tok.merges, tok.special_tokens).fingerprint


@pytest.mark.parametrize(
    ("special", "ids", "message"),
    [
        ((), [*range(256)], "expected 257, one for each byte"),
        ((), [*range(256), 255], "found one twice"),
        ((), [-1, *range(256)], r"found -1\.\.255"),
        ({"<|z|>": 256}, None, "an id of its own for '<|z|>', found 256, which is in use"),
        ({"<|z|>": 300, "<|y|>": 300}, None, "found 300 twice"),
        ({"<|z|>": -1}, None, "found -1"),
    ],
)
def test_ids_that_do_not_fit_are_refused(special, ids, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        Tokenizer.from_merges([(b"a", b"b")], special, ids=ids)
