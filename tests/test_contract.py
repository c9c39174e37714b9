"""Fingerprints, manifests, files against their record, writing whole or not at all."""

import dataclasses
import errno
import hashlib
import json
import math
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxlm.contract import (
    MANIFEST,
    ContractError,
    FileRecord,
    InputError,
    Manifest,
    canonical_json,
    fingerprint,
    new_artifact,
    plain,
    record_files,
    write_atomic,
)

quick = settings(deadline=None, max_examples=80)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=12
)


# ---- canonical JSON and fingerprints -----------------------------------------------------------------------------


@quick
@given(value=values)
def test_canonical_json_is_read_back_as_the_value(value):
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
    assert fingerprint(value) == hashlib.sha256(canonical_json(value)).hexdigest()


@quick
@given(body=st.dictionaries(st.text(max_size=5), values, min_size=2, max_size=6), data=st.data())
def test_the_order_of_keys_is_no_part_of_a_fingerprint(body, data):
    shuffled = dict(data.draw(st.permutations(list(body.items()))))
    assert fingerprint(shuffled) == fingerprint(body)


@quick
@given(a=values, b=values)
def test_two_values_share_a_fingerprint_only_if_json_writes_them_alike(a, b):
    assume(json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True))
    assert fingerprint(a) != fingerprint(b)


def test_canonical_json_is_these_bytes():
    value = {"b": (1, 2.5, None), "a": {"é": True}, "c": Path("x/y")}
    assert canonical_json(value) == b'{"a":{"\\u00e9":true},"b":[1,2.5,null],"c":"x/y"}'
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_kinds_that_json_lacks_become_those_it_holds():
    record = FileRecord("ab", 3)
    assert plain(record) == {"sha256": "ab", "bytes": 3}
    assert plain([np.int32(3), np.float64(0.5), np.bool_(True)]) == [3, 0.5, True]
    assert plain({"z", "a"}) == ["a", "z"]
    assert plain({1: PurePosixPath("a/b")}) == {"1": "a/b"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_that_is_none_has_no_fingerprint(bad):
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        fingerprint({"loss": [bad]})


@pytest.mark.parametrize("bad", [object(), b"bytes", np.zeros(2), int, 1j])
def test_what_has_no_place_in_a_manifest_is_named(bad):
    with pytest.raises(TypeError, match=f"{type(bad).__name__} has no place in a manifest"):
        canonical_json({"x": bad})


# ---- manifests ---------------------------------------------------------------------------------------------------

FILES = {"tokens.bin": bytes(range(256)), "deep/index.json": b"[1, 2, 3]\n"}


@pytest.fixture
def artifact(tmp_path):
    root = tmp_path / "data"
    with new_artifact(root) as temporary:
        for name, content in FILES.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        manifest_of(record_files(temporary)).save(temporary)
    return root


def manifest_of(files, **changes):
    facts = {"vocab_size": 300, "name": "naïve \U0001f600", "share": 0.1, "counts": {"a": 1}, "none": None}
    fields = {
        "kind": "data", "facts": facts, "parents": {"tokenizer": "0" * 64}, "files": files,
        "provenance": {"time": "2026-01-01", "versions": {"jax": "0.10"}},
    }  # fmt: skip
    return Manifest(**fields | changes)


def test_a_manifest_comes_back_as_it_was_saved(artifact):
    files = {name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in FILES.items()}
    assert Manifest.load(artifact) == Manifest.load(artifact, "data") == manifest_of(files)


@quick
@given(facts=st.dictionaries(st.text(max_size=5), values, max_size=4), provenance=st.dictionaries(st.text(max_size=5), values))
def test_any_facts_come_back_with_their_fingerprint(facts, provenance):
    manifest = Manifest("kind", facts, provenance=provenance)
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), artifact="x")
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint


def test_provenance_is_no_part_of_the_fingerprint_and_all_else_is():
    base = manifest_of({"a": FileRecord("00", 1)})
    assert dataclasses.replace(base, provenance={}).fingerprint == base.fingerprint
    changes = {
        "kind": "model", "facts": {"vocab_size": 300}, "parents": {}, "files": {"a": FileRecord("00", 2)}, "format": 2,
    }  # fmt: skip
    others = [dataclasses.replace(base, **{name: value}).fingerprint for name, value in changes.items()]
    assert set(changes) == {f.name for f in dataclasses.fields(Manifest)} - {"provenance"}
    assert len({base.fingerprint, *others}) == 6


def test_every_flip_of_every_byte_of_a_manifest_is_refused(artifact):
    raw = (artifact / MANIFEST).read_bytes()
    for at in range(len(raw)):
        for flip in (0x01, 0x20, 0x80, 1 << at % 8):
            (artifact / MANIFEST).write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
            with pytest.raises(ContractError, match=MANIFEST):
                Manifest.load(artifact)


def test_every_cut_and_any_addition_is_refused(artifact):
    raw = (artifact / MANIFEST).read_bytes()
    for changed in [*(raw[:at] for at in range(0, len(raw), 7)), raw + b"\n", raw + b"x", b"", b"\xff\xfe", b"[]\n", b"{}\n"]:
        (artifact / MANIFEST).write_bytes(changed)
        with pytest.raises(ContractError, match=MANIFEST):
            Manifest.load(artifact)


@pytest.mark.parametrize("name", [*(f.name for f in dataclasses.fields(Manifest)), "fingerprint"])
def test_a_field_that_is_missing_is_refused_even_with_its_digest_right(name):
    body = manifest_of({}).to_json()
    del body[name], body["digest"]
    with pytest.raises(ContractError, match="made/by/hand"):
        Manifest.from_json(body | {"digest": fingerprint(body)}, artifact="made/by/hand")


def test_unknown_fields_and_another_format_are_refused_in_words():
    body = manifest_of({}).to_json()
    del body["digest"]
    more = body | {"author": "x"}
    with pytest.raises(ContractError, match=r"expected the fields facts, files, .* found author, facts"):
        Manifest.from_json(more | {"digest": fingerprint(more)}, artifact="x")
    newer = body | {"format": 2}
    with pytest.raises(
        ContractError, match=r"expected format 1, found format 2\. Read it with the version of jaxlm that wrote"
    ):
        Manifest.from_json(newer | {"digest": fingerprint(newer)}, artifact="x")


def test_a_directory_without_a_manifest_is_a_users_mistake(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}: expected a tokenizer artifact \(a directory with manifest.json\)"):
        Manifest.load(tmp_path, "tokenizer")
    with pytest.raises(InputError, match="expected an artifact of jaxlm"):
        Manifest.load(tmp_path / "nowhere")


def test_another_kind_than_asked_for_is_refused(artifact):
    with pytest.raises(ContractError, match="expected kind tokenizer, found kind data"):
        Manifest.load(artifact, "tokenizer")


# ---- files -------------------------------------------------------------------------------------------------------


def broken(root):
    return [f for f in Manifest.load(root).verify_files(root) if not f.kept]


def test_whole_files_are_kept_findings(artifact):
    findings = list(Manifest.load(artifact).verify_files(artifact))
    assert [f.kept for f in findings] == [True, True]
    assert [f.artifact for f in findings] == [str(artifact / name) for name in sorted(FILES)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_missing_cut_grown_or_changed_is_named_with_both_values(artifact, name):
    path, content = artifact / name, FILES[name]
    sha = hashlib.sha256(content).hexdigest()
    turned = bytes([content[0] ^ 1]) + content[1:]
    cases = {
        content[:-1]: (f"{len(content)} bytes", f"{len(content) - 1} bytes"),
        content + b"\0": (f"{len(content)} bytes", f"{len(content) + 1} bytes"),
        turned: (f"sha256 {sha}", f"sha256 {hashlib.sha256(turned).hexdigest()}"),
    }
    for damaged, (expected, found) in cases.items():
        path.write_bytes(damaged)
        assert [(f.contract, f.artifact, f.expected, f.found) for f in broken(artifact)] == [
            ("data", str(path), expected, found)
        ]
    path.unlink()
    assert [(f.artifact, f.found) for f in broken(artifact)] == [(str(path), "no such file")]
    path.mkdir()
    assert [f.found for f in broken(artifact)] == ["no such file"]


def test_a_file_too_many_is_no_finding_but_another_record(artifact):
    (artifact / "deep" / "more.bin").write_bytes(b"x")
    assert broken(artifact) == []
    assert set(record_files(artifact)) == {*FILES, "deep/more.bin"}
    assert set(record_files(artifact, beside=("deep/more.bin",))) == {*FILES, MANIFEST}


def test_required_files_stop_at_the_first_that_differs_among_those_chosen(artifact):
    manifest = Manifest.load(artifact)
    manifest.require_files(artifact)
    (artifact / "tokens.bin").write_bytes(b"")
    with pytest.raises(ContractError, match=r"tokens\.bin: expected 256 bytes, found 0 bytes\. Restore it") as caught:
        manifest.require_files(artifact)
    assert caught.value.artifact == str(artifact / "tokens.bin")
    manifest.require_files(artifact, only=lambda name: name.startswith("deep/"))


# ---- writing -----------------------------------------------------------------------------------------------------


def tree(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def test_an_atomic_write_replaces_the_whole_content_and_leaves_nothing_beside(tmp_path):
    for content in (b"long before", b"", b"after"):
        write_atomic(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == content
    assert tree(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_atomic_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call, error):
    (tmp_path / "x").write_bytes(b"before")

    def failing(*_):
        raise error

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(type(error)) as caught:
        write_atomic(tmp_path / "x", b"after")
    assert getattr(caught.value, "filename", None) == (str(tmp_path / "x") if isinstance(error, OSError) else None)
    assert tree(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("there", [False, True])
def test_an_artifact_whose_making_fails_is_not_there(tmp_path, error, there):
    final = tmp_path / "deep" / "artifact"
    if there:
        final.mkdir(parents=True)
    with pytest.raises(type(error)), new_artifact(final) as temporary:  # noqa: PT012
        (temporary / "half").write_bytes(b"half")
        assert not (final / "half").exists()
        raise error
    assert tree(tmp_path) == ["deep", "deep/artifact"][: 1 + there]


@pytest.mark.parametrize(("name", "named"), [(None, "artifact"), ("half", "artifact/half"), ("/elsewhere", "/elsewhere")])
def test_an_artifact_for_which_there_is_no_room_is_named_by_the_name_that_it_would_have_had(tmp_path, name, named):
    with pytest.raises(OSError, match="No space left") as caught, new_artifact(tmp_path / "artifact") as temporary:  # noqa: PT012
        (temporary / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", *([str(temporary / name)] if name else []))
    assert caught.value.filename == str(tmp_path / named)
    assert tree(tmp_path) == []


def test_every_file_and_directory_of_an_artifact_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.stat(handle).st_ino))

    def watched(source, target):
        assert {os.stat(p).st_ino for p in [source, *source.rglob("*")]} <= set(flushed)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with new_artifact(tmp_path / "artifact") as temporary:
        (temporary / "below").mkdir()
        for name in ("a", "below/b"):
            (temporary / name).write_bytes(b"x")
    assert tree(tmp_path) == ["artifact", "artifact/a", "artifact/below", "artifact/below/b"]


def test_a_flush_that_fails_leaves_no_artifact_and_names_the_file(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error") as caught, new_artifact(tmp_path / "artifact") as temporary:
        (temporary / "a").write_bytes(b"x")
    assert caught.value.filename == str(tmp_path / "artifact" / "a")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_an_artifact_appears_whole_in_a_new_or_empty_directory(tmp_path, there):
    final = tmp_path / "artifact"
    if there:
        final.mkdir()
    with new_artifact(final) as temporary:
        assert temporary.parent == tmp_path
        (temporary / "a").write_bytes(b"a")
    assert tree(tmp_path) == ["artifact", "artifact/a"]


def test_a_directory_in_use_is_refused_before_and_after_the_making(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "old").write_bytes(b"old")
    for name in ("file", "used"):
        with (
            pytest.raises(InputError, match=rf"{name}: expected a new or empty directory, found one in use; choose another"),
            new_artifact(tmp_path / name),
        ):
            pytest.fail("the block ran")
    with pytest.raises(OSError, match="not empty"), new_artifact(tmp_path / "late") as temporary:  # noqa: PT012
        (temporary / "mine").write_bytes(b"")
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").write_bytes(b"")
    assert tree(tmp_path) == ["file", "late", "late/theirs", "used", "used/old"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_directory_without_a_name_is_no_place_for_an_artifact(tmp_path, monkeypatch, name):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(InputError, match="expected the name of a new directory, found none"), new_artifact(name):
        pytest.fail("the block ran")
    assert tree(tmp_path) == ["inside"]
