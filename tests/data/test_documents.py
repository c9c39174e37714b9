"""Documents from every kind of source: what is read, in which order, what is counted, what is refused."""

import gzip
import json
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import InputError
from jaxlm.data import Counts, read_documents

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

RECORDS = ["first", "zweites\nmit Zeile", "第三 \U0001f600", "a \u2028 b \x85 c", "last"]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(RECORDS)).encode()
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


def read(*sources, counts=None, **options):
    return [d.text for d in read_documents(DataConfig(source=tuple(map(str, sources)), **options), counts)]


def refused(match, *sources, **options):
    with pytest.raises(InputError, match=match):
        read(*sources, **options)


def write(path, texts=RECORDS):
    """`texts` as records, by the suffix of `path`."""
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    if path.name.endswith(".parquet"):
        parquet.write_table(
            pyarrow.table({"id": range(len(texts)), "text": texts}), path, row_group_size=2, write_page_checksum=True
        )
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines, mtime=0))
    elif path.name.endswith(".zst"):
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
    else:
        path.write_bytes(lines)
    return path


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JSONL.GZ", ".JSONL.ZST"])
def test_records_are_read_as_they_were_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(tmp_path / f"a{suffix.lower()}").rename(path)
    documents = list(read_documents(DataConfig(source=(str(path),))))
    assert [d.text for d in documents] == RECORDS
    assert [d.origin for d in documents] == [f"{path}:{n}" for n in range(1, 6)]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py"])
def test_a_text_file_is_one_document_byte_for_byte(tmp_path, suffix):
    text = "\ufeffone\r\n\r\ntwo\n\x00 \u2028三\r"
    (tmp_path / f"a{suffix}").write_bytes(text.encode())
    assert read(tmp_path / f"a{suffix}") == [text]


@pytest.mark.parametrize("packed", [lambda b: b, lambda b: gzip.compress(b), lambda b: zstandard.compress(b)])
def test_a_line_is_a_document_blank_lines_are_not(tmp_path, packed):
    suffix = {0x1F: ".gz", 0x28: ".zst"}.get(packed(b"{}")[0], "")
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}'))
    assert read(tmp_path / f"a.jsonl{suffix}") == ["a", "b"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_several_frames_are_one_file(tmp_path, pack):
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst")
    cuts = [0, 7, 40, len(LINES)]
    path.write_bytes(b"".join(pack(LINES[a:b]) for a, b in pairwise(cuts)))
    assert read(path) == RECORDS


def test_a_zstd_frame_to_be_skipped_is_skipped(tmp_path):
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    for blob in (skippable + zstandard.compress(LINES), zstandard.compress(LINES) + skippable):
        (tmp_path / "a.jsonl.zst").write_bytes(blob)
        assert read(tmp_path / "a.jsonl.zst") == RECORDS


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())]
)
def test_text_columns_of_every_arrow_type_are_read(tmp_path, kind):
    parquet.write_table(pyarrow.table({"text": pyarrow.array(RECORDS).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == RECORDS


def test_another_text_field_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1, "body": "x"}\n')
    parquet.write_table(pyarrow.table({"text": [1], "body": ["y"]}), tmp_path / "b.parquet")
    assert read(tmp_path, text_field="body") == ["x", "y"]


def test_a_folder_is_read_in_sorted_order_and_other_files_are_left_alone(tmp_path):
    for name in ("b/2.txt", "a/9.md", "b/10.txt", "c.TXT", "a/0/z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder.txt").mkdir()
    expected = ["a/0/z.py", "a/9.md", "b/10.txt", "b/2.txt", "c.TXT"]
    assert read(tmp_path) == expected
    assert read(f"{tmp_path}/**/*.txt") == ["b/10.txt", "b/2.txt"]
    assert read(f"{tmp_path}/b/*.txt", tmp_path / "a") == ["b/10.txt", "b/2.txt", "a/0/z.py", "a/9.md"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("none")
    assert read(tmp_path / "a[1].txt") == ["brackets"]


def test_the_standard_library_is_read_documentation_first_and_always_the_same():
    from pydoc_data.topics import topics

    counts = Counts()
    cfg = DataConfig(source=("stdlib:",))
    documents = list(read_documents(cfg, counts))
    assert [d.text for d in documents[: len(topics)]] == [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {d.origin.removeprefix("stdlib:"): d.text for d in documents[len(topics) :]}
    assert list(modules) == sorted(modules)
    assert modules["json/decoder.py"] == (root / "json/decoder.py").read_bytes().decode()
    assert not [name for name in modules if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert counts.documents == len(documents) > 500
    assert documents == list(read_documents(cfg))


# ---- what is counted -----------------------------------------------------------------------------------------------


def test_documents_and_bytes_are_counted_by_source(tmp_path):
    (tmp_path / "a.txt").write_text("äö")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": "x"}\n{"text": "yy"}\n')
    counts = Counts()
    assert read(tmp_path / "a.txt", tmp_path / "b.jsonl", counts=counts) == ["äö", "x", "yy"]
    by_source = {str(tmp_path / "a.txt"): (1, 4), str(tmp_path / "b.jsonl"): (2, 3)}
    assert counts.facts() == {
        "documents": 3, "bytes": 7, "empty": 1, "invalid_utf8": 0, "mojibake": 0, "truncated": False,
        "by_source": {name: {"documents": d, "bytes": b} for name, (d, b) in by_source.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "given", "truncated"), [(6, 3, False), (5, 2, True), (4, 2, True), (3, 1, True), (1, 1, True)]
)
def test_max_bytes_stops_before_the_document_that_would_pass_it(tmp_path, limit, given, truncated):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ["ä", "bb", "cc"]))
    counts = Counts()
    assert read(tmp_path, counts=counts, max_bytes=limit) == ["ä", "bb", "cc"][:given]
    assert (counts.documents, counts.bytes, counts.truncated) == (given, 2 * given, truncated)


def invalid(folder, kind):
    """A source with the bytes `a 0xff b` for a text, then a good one."""
    path = folder / f"{'z' if kind == '.txt' else 'a'}{kind}"
    if kind == ".txt":
        path.write_bytes(b"a\xffb")
    elif kind == ".parquet":
        offsets, data = pyarrow.py_buffer(b"\0\0\0\0\3\0\0\0\7\0\0\0"), pyarrow.py_buffer(b"a\xffbgood")
        parquet.write_table(
            pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])}), path
        )
    else:
        lines = b'{"text": "a\xffb"}\n{"text": "good"}\n'
        path.write_bytes(
            gzip.compress(lines) if kind.endswith("gz") else zstandard.compress(lines) if kind.endswith("zst") else lines
        )
    return path


@pytest.mark.parametrize("kind", [".txt", *SUFFIXES])
def test_invalid_utf8_is_replaced_and_counted_or_refused_with_its_place(tmp_path, kind):
    path, counts = invalid(tmp_path, kind), Counts()
    assert read(path, counts=counts)[0] == "a\ufffdb"
    assert counts.invalid_utf8 == 1
    refused(rf"{path.name}.*expected UTF-8, found byte 0xff at offset 1 .*--data.strict", path, strict=True)


def test_half_a_surrogate_pair_in_json_is_replaced_and_counted_or_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\udcff"}\n')
    counts = Counts()
    assert read(tmp_path, counts=counts) == ["x\ufffdy", "\U0001f600", "\ufffd"]
    assert counts.invalid_utf8 == 2
    refused(r"a\.jsonl:1: expected UTF-8, found the lone surrogate U\+D800 at character 1", tmp_path, strict=True)


def test_bytes_that_are_no_utf8_beside_half_a_pair_are_counted_once_and_elsewhere_not_at_all(tmp_path):
    lines = [b'{"text": "\xff \\ud800"}', b'{"text": "fine", "other": "\xff"}', b'{"text": "\\ud800", "other": "\xff"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    counts = Counts()
    found = read(tmp_path, counts=counts)
    assert (found[1], counts.invalid_utf8) == ("fine", 2)
    assert all("\ufffd" in text and text.encode() for text in (found[0], found[2]))


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_sources_that_are_not_there_are_refused_by_name(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "good.txt").write_text("x")
    refused(r"--data.source: expected a file, .*found nothing at '.*none\.txt'", tmp_path / "none.txt")
    refused(r"found nothing at .*none\.txt", tmp_path / "good.txt", tmp_path / "none.txt")
    refused(r"a\.pdf: expected a file with one of \.txt .*found \.pdf", tmp_path / "a.pdf")
    refused(r"a\.pdf: .*matched by", f"{tmp_path}/*")
    refused(r"\*\.rst: expected files .*found none", f"{tmp_path}/*.rst")
    (tmp_path / "empty").mkdir()
    refused(r"empty: expected files .*found none", tmp_path / "empty")


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text('\n{"text": ""}\n')
    refused(r"--data.source: expected text in .*found no document that is not empty", tmp_path)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "expected a JSON object, found Expecting"),
        ('{"text": "cut of', "expected a JSON object, found Invalid control"),
        ("[" * 100_000, "expected a JSON object, found maximum recursion"),
        ("[1]", "expected a JSON object, found list"),
        ('{"body": "x", "id": 1}', "expected the field 'text', found body, id; set --data.text-field"),
        ("{}", "expected the field 'text', found none"),
        ('{"text": 7}', "expected text in the field 'text', found int"),
        ('{"text": null}', "expected text in the field 'text', found null"),
        ('{"text": ["x"]}', "expected text in the field 'text', found list"),
    ],
)  # fmt: skip
def test_a_line_without_text_is_refused_with_its_number(tmp_path, line, match):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n\n{line}\n')
    refused(rf"a\.jsonl:3: {match}", tmp_path)


def test_a_column_without_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for column, match in (
        ({"body": ["x"], "n": [1]}, "expected the column 'text', found body, n; set --data.text-field"),
        ({"text": [1]}, "expected text in the column 'text', found int64"),
        ({"text": [b"x"]}, "expected text in the column 'text', found binary"),
        ({"text": ["x", None]}, "expected text in the column 'text', found null in row 2"),
    ):
        parquet.write_table(pyarrow.table(column), path)
        refused(rf"a\.parquet: {match}", path)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, suffix):
    whole = write(tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in sorted({*range(0, len(whole), max(1, len(whole) // 150)), *range(len(whole) - 12, len(whole))}):
        path.write_bytes(whole[:length])
        refused(f"cut{suffix}: expected a", path)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_zstd_file_without_a_checksum_cut_anywhere_is_refused(tmp_path, frames):
    compressor = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False)
    ends, whole = [], b""
    for i in range(frames):
        writer = compressor.compressobj()
        whole += writer.compress(LINES * (i + 1)) + writer.flush()
        ends.append(len(whole))
    for length in sorted(set(range(len(whole))) - set(ends)):
        (tmp_path / "a.jsonl.zst").write_bytes(whole[:length])
        refused(r"a\.jsonl\.zst.*: expected", tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_flipped_byte_in_a_checked_file_is_never_read_as_another_text(tmp_path, suffix):
    whole = write(tmp_path / f"whole{suffix}").read_bytes()
    path, caught = tmp_path / f"bad{suffix}", []
    for at in range(0, len(whole), max(1, len(whole) // 100)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            assert read(path) == RECORDS
        except InputError as error:
            caught.append(str(error))
    assert len(caught) > 20
    assert all(path.name in message for message in caught)


@pytest.mark.parametrize(
    ("module", "suffix"), [("zstandard", ".jsonl.zst"), ("pyarrow", ".parquet"), ("pyarrow.parquet", ".parquet")]
)
def test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch, module, suffix):
    import sys

    path = write(tmp_path / f"a{suffix}")
    monkeypatch.setitem(sys.modules, module, None)
    refused(rf"{suffix.removeprefix('.jsonl')} needs .*`pip install 'jaxlm\[data\]'`", path)


@pytest.mark.realdata
def test_pages_of_the_web_are_the_same_in_every_form(real_data, tmp_path):
    source = real_data / "cc_head_dolma"
    paths = sorted(source.glob("*.jsonl.gz"))
    expected = [json.loads(line)["text"] for path in paths for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    assert len(expected) == 20
    assert read(f"{source}/*.jsonl.gz") == expected
    for suffix in SUFFIXES:
        assert read(write(tmp_path / f"a{suffix}", expected)) == expected


@pytest.mark.parametrize(("separator", "between"), [("<|endoftext|>", "<|endoftext|>"), (r"\n\n", "\n\n")])
def test_a_separator_cuts_text_files_into_documents(tmp_path, separator, between):
    (tmp_path / "a.txt").write_bytes(between.join(["one", "", "two\nlines", "three"]).encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": f"four{between}four"}))
    counts = Counts()
    cfg = DataConfig(source=(str(tmp_path),), separator=separator)
    assert [text for text, _ in read_documents(cfg, counts)] == ["one", "two\nlines", "three", f"four{between}four"]
    assert (counts.documents, counts.empty) == (4, 1)
