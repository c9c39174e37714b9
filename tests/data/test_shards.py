"""Token shards: what was read is what was written, every byte of it, or the file that differs is named."""

import dataclasses
import itertools
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError, InputError, Manifest, check
from jaxlm.data import build_shards, open_shards, shards, split_of
from jaxlm.run import audit
from jaxlm.tokenizer import Tokenizer


def source(folder, texts):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return DataConfig(source=(str(folder / "a.jsonl"),), val_fraction=0.3, shard_tokens=1024)


@pytest.fixture(scope="module")
def built(tmp_path_factory, texts, tokenizer):
    """Shards of the texts: several training files, one or more for validation."""
    root = tmp_path_factory.mktemp("data")
    build_shards(source(root, texts), tokenizer, root / "shards")
    return root / "shards"


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """A copy, to be tampered with."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def sides(texts):
    return {split: [t for t in texts if split_of(t, 0.3) == split] for split in ("train", "val")}


# ---- round trip ----------------------------------------------------------------------------------------------------


def test_every_document_decodes_to_its_text_in_its_split_and_order(built, texts, tokenizer):
    data = open_shards(built)
    assert len(data.train.shards) > 2
    for split, expected in sides(texts).items():
        stream = getattr(data, split)
        ids = [stream.document(i) for i in range(stream.documents)]
        assert [tokenizer.decode(i[1:-1]) for i in ids] == expected
        assert all((i[0], i[-1]) == (tokenizer.bos_id, tokenizer.eos_id) and i.dtype == np.int32 for i in ids)
        assert len(stream) == sum(map(len, ids))
        assert (np.concatenate(ids) == stream.slice(0, len(stream))).all()


def test_the_files_are_what_the_format_says_read_without_this_package(built, texts, tokenizer):
    facts = json.loads((built / "manifest.json").read_bytes())["facts"]
    for split, expected in sides(texts).items():
        names = sorted(p.name for p in built.glob(f"{split}-*.bin"))
        assert names == list(facts["splits"][split]["shards"]) == [f"{split}-{i:05d}.bin" for i in range(len(names))]
        flat = np.concatenate([np.frombuffer((built / name).read_bytes(), "<u2") for name in names])
        documents = [[tokenizer.bos_id, *tokenizer.encode_ordinary(t), tokenizer.eos_id] for t in expected]
        assert flat.tolist() == [i for d in documents for i in d]
        starts = np.frombuffer((built / f"{split}.index.bin").read_bytes(), "<i8")
        assert starts.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
        cuts = np.cumsum([0, *facts["splits"][split]["shards"].values()])
        assert set(cuts) <= set(starts)
        assert (np.diff(cuts) <= 1024).all()


def test_the_manifest_states_what_the_next_layer_relies_on(built, texts, tokenizer):
    facts, data = Manifest.load(built, "data").facts, open_shards(built)
    ids = np.concatenate([tokenizer.encode_document(t) for t in texts])
    assert (facts["vocab_size"], facts["max_id"], facts["dtype"]) == (300, ids.max(), "<u2")
    for split, expected in sides(texts).items():
        found = facts["splits"][split]
        assert (found["documents"], found["bytes"]) == (len(expected), sum(len(t.encode()) for t in expected))
        assert found["tokens"] == len(getattr(data, split))
    assert facts["curation"]["documents"] == len(texts)
    assert data.manifest.parents == {"tokenizer": tokenizer.fingerprint}
    assert {"split_rule", "packing_rule", "loss_mask_rule", "order_seed", "decontamination"} <= facts.keys()


@pytest.mark.parametrize(("size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_ids_take_two_bytes_where_they_fit(tmp_path, texts, size, dtype):
    pairs = [(bytes([i >> 8]), bytes([i & 255])) for i in range(65536)]
    tokenizer = Tokenizer.from_merges(pairs[: size - 257])  # the greatest id of all opens and closes documents
    data = build_shards(source(tmp_path, texts), tokenizer, tmp_path / "out")
    assert data.train.shards[0].dtype == np.dtype(dtype)
    assert data.manifest.facts["max_id"] == size - 1
    assert data.train.document(0)[[0, -1]].tolist() == [size - 1] * 2
    assert tokenizer.decode(data.train.document(0)[1:-1]) == sides(texts)["train"][0]


def test_shards_are_mapped_not_read(built):
    assert all(isinstance(shard, np.memmap) and shard.mode == "r" for shard in open_shards(built).train.shards)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(-3, 120), st.integers(-3, 120))
def test_a_slice_is_that_of_the_joined_shards(make_stream, lengths, shards, begin, end):
    stream = make_stream(lengths, shards=shards)
    flat = np.concatenate(stream.shards)
    assert stream.slice(begin, end).tolist() == flat[max(begin, 0) : max(end, 0)].tolist()
    assert stream.slice(begin, end).dtype == np.int32


def test_building_twice_gives_the_same_fingerprint_and_bytes(built, tmp_path, texts, tokenizer):
    seen = []
    again = build_shards(source(tmp_path, texts), tokenizer, tmp_path / "out", on_progress=lambda c: seen.append(c.documents))
    assert again.manifest.provenance["sources"] != open_shards(built).manifest.provenance["sources"]
    assert again.manifest.fingerprint == open_shards(built).manifest.fingerprint
    assert again.manifest.files == open_shards(built).manifest.files
    assert seen == list(range(1, len(texts) + 1))


# ---- tampering -----------------------------------------------------------------------------------------------------


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_untouched_copy_opens(copy):
    assert open_shards(copy).train.documents > 0


def test_any_flipped_byte_is_found_and_its_file_named(copy):
    rng = np.random.default_rng(0)
    for name in files(copy):
        path, whole = copy / name, (copy / name).read_bytes()
        ends = {0, 1, len(whole) - 1}
        for at in sorted(
            ends | set(range(len(whole)) if name == "manifest.json" else rng.integers(0, len(whole), 25).tolist())
        ):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(ContractError, match=f"copy/{name}"):
                open_shards(copy)
        path.write_bytes(whole)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[1:], lambda b: b""])
def test_a_file_cut_or_lengthened_by_one_byte_is_named(copy, change):
    for name in files(copy):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(change(whole))
        with pytest.raises(ContractError, match=f"copy/{name}: expected"):
            open_shards(copy)
        (copy / name).write_bytes(whole)


def test_a_missing_file_is_named(copy):
    for name in files(copy):
        (copy / name).rename(copy.parent / "aside")
        error = InputError if name == "manifest.json" else ContractError
        with pytest.raises(
            error, match=r"copy: expected a data artifact" if name == "manifest.json" else f"{name}.* found no such file"
        ):
            open_shards(copy)
        (copy.parent / "aside").rename(copy / name)


@pytest.mark.parametrize("name", ["train-00099.bin", "notes.txt", ".hidden", "sub/val-00000.bin"])
def test_a_file_too_many_is_named(copy, name):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"")
    with pytest.raises(ContractError, match=rf"{name}: expected no such file, found one\. Remove it"):
        open_shards(copy)


def test_two_shards_that_changed_places_are_named(copy):
    a, b = copy / "train-00000.bin", copy / "train-00001.bin"
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)
    with pytest.raises(ContractError, match=r"train-00000\.bin"):
        open_shards(copy)


def test_an_index_that_contradicts_its_manifest_is_named(copy):
    manifest = Manifest.load(copy)
    splits = {**manifest.facts["splits"], "val": {**manifest.facts["splits"]["val"], "documents": 3}}
    dataclasses.replace(manifest, facts={**manifest.facts, "splits": splits}).save(copy)
    with pytest.raises(ContractError, match=r"val\.index\.bin: expected 3 documents"):
        open_shards(copy)


def test_another_kind_of_artifact_is_refused(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ContractError, match="expected kind data, found kind tokenizer"):
        open_shards(tmp_path / "tokenizer")


# ---- the tokenizer -------------------------------------------------------------------------------------------------


def test_the_tokenizer_it_was_made_with_is_accepted_another_of_the_same_size_is_not(built, tokenizer):
    assert all(finding.kept for finding in check(tokenizer, open_shards(built)))
    merges = tokenizer.merges
    other = Tokenizer.from_merges([*merges[:-1], (b"q", b"\xff")], tokenizer.special_tokens)
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(ContractError, match=f"expected tokenizer {tokenizer.fingerprint}, found tokenizer {other.fingerprint}"):
        check(other, open_shards(built))
    with pytest.raises(ContractError, match="tokenizer"):
        check(Tokenizer.from_merges(merges[:-1], tokenizer.special_tokens), built)


# ---- failing half way ----------------------------------------------------------------------------------------------


def failing(counts):
    if counts.documents == 40:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("spoil", "error", "options"),
    [
        (lambda path: path.write_text(path.read_text() + "{"), InputError, {}),
        (lambda path: path.write_bytes(path.read_bytes() + b'{"text": "\xff"}'), InputError, {"strict": True}),
        (lambda path: path.write_text(""), InputError, {}),
        (lambda path: None, KeyboardInterrupt, {}),
        (lambda path: None, InputError, {"source": ("nowhere.txt",)}),
        (lambda path: path.write_text('{"text": "alone"}'), InputError, {}),
    ],
    ids=["line", "bytes", "empty", "callback", "missing", "one document"],
)  # fmt: skip
def test_nothing_is_left_behind_when_building_fails(tmp_path, texts, tokenizer, spoil, error, options):
    cfg = dataclasses.replace(source(tmp_path, texts), **options)
    spoil(tmp_path / "a.jsonl")
    before = files(tmp_path)
    with pytest.raises(error):
        build_shards(cfg, tokenizer, tmp_path / "out", on_progress=failing if error is KeyboardInterrupt else None)
    assert files(tmp_path) == before


@pytest.mark.parametrize("room", [0, 1000])
def test_a_shard_for_which_there_is_no_room_is_named_and_nothing_is_left(tmp_path, texts, tokenizer, room):
    cfg, before, limits = source(tmp_path, texts), files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            build_shards(cfg, tokenizer, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path(caught.value.filename).parent == tmp_path / "out"
    assert Path(caught.value.filename).suffix == ".bin"
    assert files(tmp_path) == before


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_an_empty_split_is_refused(tmp_path, texts, tokenizer, share):
    empty = "val" if share < 0.5 else "train"
    cfg = dataclasses.replace(source(tmp_path, texts), val_fraction=share)
    with pytest.raises(InputError, match=f"--data.val-fraction: .*found 60 in all and none for {empty} .*--data.separator"):
        build_shards(cfg, tokenizer, tmp_path / "out")
    assert files(tmp_path) == ["a.jsonl"]


def test_a_directory_in_use_is_never_written_over(built, tmp_path, texts, tokenizer):
    before = {p.name: p.read_bytes() for p in built.iterdir()}
    with pytest.raises(InputError, match="expected a new or empty directory"):
        build_shards(source(tmp_path, texts), tokenizer, built)
    assert {p.name: p.read_bytes() for p in built.iterdir()} == before


# ---- all of the text -------------------------------------------------------------------------------------------------


def test_documents_that_are_lost_between_reading_and_writing_are_refused(tmp_path, texts, tokenizer, monkeypatch):
    real = shards.read_documents
    monkeypatch.setattr(shards, "read_documents", lambda *a: itertools.islice(real(*a), 0, None, 2))
    with pytest.raises(ContractError, match=rf"expected the {len(texts)} documents that were read, .* for train \+ .* for val"):
        build_shards(source(tmp_path, texts), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["documents", "bytes"])
def test_counts_of_another_text_are_refused_when_it_is_opened(copy, name):
    manifest = Manifest.load(copy, "data")
    curation = {**manifest.facts["curation"], name: manifest.facts["curation"][name] + 1}
    dataclasses.replace(manifest, facts={**manifest.facts, "curation": curation}).save(copy)
    with pytest.raises(ContractError, match=rf"expected the \d+ {name} that were read"):
        open_shards(copy)
    assert [f.expected for f in audit(copy) if not f.kept] == [
        f"the {curation[name]} {name} that were read, in one split or the other"
    ]


def test_text_that_ends_early_and_documents_that_are_empty_are_counted_as_they_are_written(tmp_path, texts, tokenizer):
    cfg = dataclasses.replace(source(tmp_path, ["", *texts, ""]), max_bytes=sum(len(text.encode()) for text in texts) // 2)
    facts = build_shards(cfg, tokenizer, tmp_path / "out").manifest.facts
    assert facts["curation"]["truncated"]
    assert facts["curation"]["documents"] == sum(split["documents"] for split in facts["splits"].values())
