"""Every format against the libraries that read it: equal ids of any text, the same bytes when written again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from jaxlm.contract import ContractError, InputError
from jaxlm.interop import (
    FORMATS,
    read_tiktoken,
    read_tokenizer,
    read_tokenizer_json,
    tiktoken_arguments,
    write_gpt2_files,
    write_tiktoken,
    write_tokenizer,
    write_tokenizer_json,
)
from jaxlm.interop.formats import detected
from jaxlm.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|user turn|>", "你好!", "ab<|x|>")
PARTS = [
    "a",
    "def",
    "return",
    "self.",
    "s",
    "'",
    "'ll",
    "'S",
    "É",
    "e\u0301",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u2028",
    "\x85",
]
PARTS += [
    "\x1c",
    "1",
    "2345",
    "²",
    ".",
    "!?/",
    "你",
    "你好",
    "\U0001f600",
    "\u200d",
    "ǅ",
    "ſ",
    "\x00",
    "<|x|",
    "<|user",
    *SPECIAL,
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
quick = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def by_tokenizers(layouts, tmp_path_factory) -> dict[str, tokenizers.Tokenizer]:
    """What `tokenizers` makes of the written files, for each way to number."""
    folder = tmp_path_factory.mktemp("json")
    for name, tok in layouts.items():
        write_tokenizer(tok, folder / f"{name}.json", format="tokenizer.json")
    return {name: tokenizers.Tokenizer.from_file(str(folder / f"{name}.json")) for name in layouts}


@pytest.fixture(scope="module")
def by_tiktoken(layouts, tmp_path_factory) -> dict[str, tiktoken.Encoding]:
    """What tiktoken makes of the written files."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for name, tok in layouts.items():
        write_tokenizer(tok, folder / f"{name}.tiktoken", format="tiktoken")
        arguments = tiktoken_arguments(tok)
        ranks = load_tiktoken_bpe(str(folder / f"{name}.tiktoken"))
        assert ranks == arguments.pop("mergeable_ranks")
        found[name] = tiktoken.Encoding(**arguments, mergeable_ranks=ranks)
    return found


# ---- equal ids ---------------------------------------------------------------------------------------------------


@quick
@given(text=texts)
def test_ids_of_written_files_are_equal_in_tokenizers_and_tiktoken(layouts, by_tokenizers, by_tiktoken, text):
    for name, tok in layouts.items():
        ids = tok.encode(text, allowed_special="all")
        assert by_tokenizers[name].encode(text, add_special_tokens=False).ids == ids
        assert by_tiktoken[name].encode(text, allowed_special="all") == ids
        assert by_tokenizers[name].decode(ids, skip_special_tokens=False) == text
        assert by_tiktoken[name].decode(ids) == text
        assert by_tiktoken[name].encode_ordinary(text) == tok.encode_ordinary(text)


def test_ids_of_source_are_equal_in_tokenizers_and_tiktoken(layouts, by_tokenizers, by_tiktoken, stdlib_texts):
    text = "<|endoftext|>".join([*stdlib_texts[:4], stdlib_texts[-1]])
    for name, tok in layouts.items():
        ids = tok.encode(text, allowed_special="all")
        assert by_tokenizers[name].encode(text).ids == ids
        assert by_tiktoken[name].encode(text, allowed_special="all") == ids


@quick
@given(
    text=st.lists(st.sampled_from(["<|a|>", "<|a|><|b|>", "|>", "<|a", "a", " ", "<|a b|>", "aaa!"]), max_size=12).map("".join)
)
def test_special_tokens_that_begin_like_others_are_found_alike_in_tokenizers(overlapping, text):
    tok, theirs = overlapping
    assert theirs.encode(text).ids == tok.encode(text, allowed_special="all")


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    path = tmp_path_factory.mktemp("overlapping") / "tokenizer.json"
    tok = Tokenizer.from_merges([(b"a", b"a"), (b"|", b">")], ("<|a|>", "<|a|><|b|>", "<|a b|>", "aaa!"), "cl100k")
    write_tokenizer_json(tok, path)
    return tok, tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.realdata
def test_ids_of_real_texts_are_equal_in_tokenizers_and_tiktoken(layouts, by_tokenizers, by_tiktoken, real_data: Path):
    found = 0
    for path in sorted(real_data.glob("udhr/**/*.txt"))[::20][:15] + sorted(real_data.glob("tinyshakespeare/*.txt")):
        text = path.read_bytes().decode(errors="replace")[:50_000]
        ids = layouts["gpt2"].encode(text)
        assert by_tokenizers["gpt2"].encode(text).ids == ids, path
        assert by_tiktoken["gpt2"].encode(text) == ids, path
        found += 1
    assert found > 0


# ---- there and back ----------------------------------------------------------------------------------------------


def same(a: Tokenizer, b: Tokenizer) -> bool:
    return (a.merges, a.vocab, a.pattern, a.special_ids) == (b.merges, b.vocab, b.pattern, b.special_ids)


@pytest.mark.parametrize("name", ["plain", "gpt2", "first", "gaps"])
def test_written_read_and_written_again_is_byte_for_byte_the_same(layouts, name, tmp_path):
    tok = layouts[name]
    write_tokenizer_json(tok, tmp_path / "1.json")
    back = read_tokenizer_json(tmp_path / "1.json")
    assert same(back, tok)
    assert (back.fingerprint == tok.fingerprint) == (list(back.special_ids) == list(tok.special_ids))
    write_tokenizer_json(back, tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()

    write_tiktoken(tok, tmp_path / "1.tiktoken")
    arguments = {"pattern": tok.pattern, "special_tokens": tok.special_ids}
    back = read_tiktoken(tmp_path / "1.tiktoken", **arguments, gaps=name == "gaps")
    assert same(back, tok)
    write_tiktoken(back, tmp_path / "2.tiktoken")
    assert (tmp_path / "1.tiktoken").read_bytes() == (tmp_path / "2.tiktoken").read_bytes()

    if tok.pattern == "gpt2":
        write_gpt2_files(tok, tmp_path / "1")
        back = read_tokenizer(tmp_path / "1")
        assert same(back, tok)
        write_gpt2_files(back, tmp_path / "2")
        for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_a_plain_tokenizer_comes_back_with_its_fingerprint(layouts, tmp_path):
    tok = layouts["plain"]
    write_tokenizer(tok, tmp_path / "tokenizer.json", format="tokenizer.json")
    write_tokenizer(tok, tmp_path / "ranks.tiktoken", format="tiktoken")
    assert read_tokenizer(tmp_path / "tokenizer.json").fingerprint == tok.fingerprint
    again = read_tokenizer(tmp_path / "ranks.tiktoken", pattern=tok.pattern, special_tokens=tok.special_tokens)
    assert again.fingerprint == tok.fingerprint


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_tokenizer_comes_back_from_any_format_or_is_refused(data, tmp_path_factory):
    """Merges, numbers and special tokens without sense: what is written gives the same ids in the libraries."""
    folder = tmp_path_factory.mktemp("any")
    tokens = [bytes([byte]) for byte in b"ab \xc3\xa9#"]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(data.draw(st.integers(0, 8))):
        pair = (data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens)))
        if pair not in merges:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    count = len(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *(a + b for a, b in merges)]))
    special = data.draw(st.lists(st.sampled_from(["<|e|>", "ab", "é#", "Ġa", "<s>"]), unique=True))
    numbers = data.draw(st.permutations(range(count + len(special))))
    plain = data.draw(st.booleans())
    ids = None if plain else numbers[:count]
    tok = Tokenizer(merges, dict(zip(special, numbers[count:], strict=True)) if not plain else special, "gpt2", ids=ids)
    samples = data.draw(st.lists(st.text(alphabet="ab é#\n", max_size=30), max_size=5))
    samples += ["".join(special), "abababé# # aab  ", *(token.decode(errors="ignore") for token in tokens)]
    for format in FORMATS:
        path = folder / {"tokenizer.json": "tokenizer.json", "tiktoken": "a.tiktoken"}.get(format, "directory")
        try:
            write_tokenizer(tok, path, format=format)
        except InputError:
            assert not path.exists()
            continue
        given_ones = {"pattern": "gpt2", "special_tokens": tok.special_ids} if format == "tiktoken" else {}
        back = read_tokenizer(path, **given_ones)
        assert back.vocab == tok.vocab
        assert back.special_ids == tok.special_ids
        for text in samples:
            ids = tok.encode(text, allowed_special="all")
            assert back.encode(text, allowed_special="all") == ids
            if format == "tokenizer.json":
                assert tokenizers.Tokenizer.from_file(str(path)).encode(text).ids == ids
            if format == "tiktoken":
                assert tiktoken.Encoding(**tiktoken_arguments(tok)).encode_ordinary(text) == tok.encode_ordinary(text)


# ---- which format ------------------------------------------------------------------------------------------------


def test_the_format_is_told_by_the_path(small, tmp_path):
    for format, name in zip(FORMATS, ("tokenizer.json", "gpt2", "ranks.tiktoken"), strict=True):
        write_tokenizer(small, tmp_path / name, format=format)
        assert detected(tmp_path / name) == format
    assert detected(tmp_path) == "tokenizer.json"
    assert detected(tmp_path / "gpt2" / "vocab.json") == detected(tmp_path / "gpt2" / "merges.txt") == FORMATS[1]
    for path in (tmp_path, tmp_path / "gpt2", tmp_path / "gpt2" / "merges.txt"):
        assert same(read_tokenizer(path), small)
    (tmp_path / "gpt2" / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert same(read_tokenizer(tmp_path / "gpt2", format=FORMATS[1]), small)


def test_what_lies_beside_a_tokenizer_json_agrees_with_it_or_is_refused(small, tmp_path):
    """`transformers` reads the directory whole; the file alone is what `tokenizers` reads."""
    file, config, added = (tmp_path / name for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"))
    write_tokenizer(small, file, format="tokenizer.json")
    decoder = {str(number): {"content": text, "special": True} for text, number in small.special_ids.items()}
    for body in ({}, {"add_prefix_space": False, "added_tokens_decoder": decoder, "eos_token": "<|x|>", "unk_token": None}):
        config.write_text(json.dumps(body))
        assert same(read_tokenizer(tmp_path), small)
    for body, message in (
        (
            {"additional_special_tokens": ["<|x|>", "<|im|>"]},
            r"additional_special_tokens\[1\]: expected a special token",
        ),
        ({"add_prefix_space": True}, "add_prefix_space: expected false, found True"),
        ({"added_tokens_decoder": {"7": {"content": "<|x|>"}}}, r"'<\|x\|>': expected the special token of id 7, found 400"),
        ({"pad_token": 7}, "a value of type str at pad_token, found int 7"),
    ):
        config.write_text(json.dumps(body))
        with pytest.raises((InputError, ContractError), match=message):
            read_tokenizer(tmp_path)
        assert same(read_tokenizer(file), small)
    config.unlink()
    added.write_text(json.dumps({"<|im|>": 6000}))
    with pytest.raises(InputError, match=r"expected the special token of id 6000, found no.*; give .*tokenizer\.json itself"):
        read_tokenizer(tmp_path)


def test_paths_that_tell_no_format_are_refused(small, tmp_path):
    small.save(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    for name, message in (
        ("own", "needs no conversion; load it with Tokenizer.load"),
        ("empty", r"expected tokenizer\.json, or vocab\.json and merges\.txt in the directory, found neither"),
        ("tokenizer.model", r"expected a name that tells the format .*, found 'tokenizer\.model'; rename it"),
        ("nothing", "expected the files of a tokenizer, found none"),
        ("nothing.json", "expected a file of a tokenizer, found none"),
        ("nothing.tiktoken", "expected one of gpt2, cl100k, cl100k_base, o200k, found none: the file holds no pattern"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    for call in (
        lambda: read_tokenizer(tmp_path, format="onnx"),
        lambda: write_tokenizer(small, tmp_path / "x", format="onnx"),
    ):
        with pytest.raises(InputError, match=r"format: expected one of tokenizer\.json, .*, found 'onnx'"):
            call()


def test_what_a_file_states_is_not_to_be_given_otherwise(small, tmp_path):
    write_tokenizer(small, tmp_path / "a.json", format="tokenizer.json")
    assert same(read_tokenizer(tmp_path / "a.json", pattern="gpt2"), small)
    with pytest.raises(InputError, match="expected the pattern o200k, found gpt2 in the file"):
        read_tokenizer(tmp_path / "a.json", pattern="o200k")
    with pytest.raises(InputError, match=r"expected special tokens as tokenizer\.json states them"):
        read_tokenizer(tmp_path / "a.json", special_tokens=("<|x|>",))


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over_and_nothing_is_left_half_written(small, tmp_path, format, monkeypatch):
    write_tokenizer(small, tmp_path / "deep" / "out", format=format)
    before = sorted(path.name for path in (tmp_path / "deep").iterdir())
    with pytest.raises(InputError, match=r"expected .*new .*, found one in use; choose another or remove it"):
        write_tokenizer(small, tmp_path / "deep" / "out", format=format)
    assert before == ["out"] == sorted(path.name for path in (tmp_path / "deep").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tokenizer(small, tmp_path / "deep" / "new", format=format)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]


# ---- document token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "wanted", "first"),
    [
        ({"<|b|>": 300, "<|endoftext|>": 301, "<s>": 299}, None, "<|endoftext|>"),
        ({"<|b|>": 300, "<|begin_of_text|>": 301, "<s>": 299}, None, "<|begin_of_text|>"),
        ({"<|b|>": 300, "<s>": 301}, None, "<s>"),
        ({"<|b|>": 301, "<|a|>": 300}, None, "<|a|>"),
        ({"<|b|>": 301, "<|a|>": 300}, "<|b|>", "<|b|>"),
    ],
)
def test_the_document_token_comes_first(tmp_path, special, wanted, first):
    tok = Tokenizer([], special, "o200k")
    write_tokenizer(tok, tmp_path / "a.json", format="tokenizer.json")
    write_tokenizer(tok, tmp_path / "a.tiktoken", format="tiktoken")
    by_json = read_tokenizer(tmp_path / "a.json", document_token=wanted)
    by_ranks = read_tiktoken(tmp_path / "a.tiktoken", pattern="o200k", special_tokens=special, document_token=wanted, gaps=True)
    for back in (by_json, by_ranks):
        assert back.special_tokens[0] == first
        assert back.bos_id == special[first]
        rest = list(back.special_ids.values())[1:]
        assert rest == sorted(rest)
    with pytest.raises(InputError, match=r"expected the special token '<\|z\|>' for document_token, found "):
        read_tokenizer(tmp_path / "a.json", document_token="<|z|>")


def test_a_tokenizer_without_special_tokens_comes_back(tmp_path):
    tok = Tokenizer([(b"a", b"b")], (), "gpt2")
    for format, name in zip(FORMATS, ("a.json", "a", "a.tiktoken"), strict=True):
        write_tokenizer(tok, tmp_path / name, format=format)
    assert same(read_tokenizer(tmp_path / "a.json"), tok)
    assert same(read_tokenizer(tmp_path / "a"), tok)
    assert same(read_tokenizer(tmp_path / "a.tiktoken", pattern="gpt2", special_tokens=()), tok)


# ---- importing ---------------------------------------------------------------------------------------------------


def test_importing_needs_no_other_library():
    heavy = ("jax", "jaxlib", "flax", "numba", "rich", "tokenizers", "tiktoken", "transformers")
    code = f"import sys, jaxlm.interop; print(sorted({{name.split('.')[0] for name in sys.modules}} & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---- damage ------------------------------------------------------------------------------------------------------

SAMPLES = ["abcab a# abab é\u00e9 <|endoftext|> <|x|> # #\n\n 12 it's", "".join(map(chr, range(32, 400))), " ab abc ababab"]


def damages(raw: bytes, step: int):
    """Every so many bytes one of them changed, in one bit or to a digit, or the file cut there."""
    for at in range(0, len(raw), step):
        yield raw[:at] + bytes([raw[at] ^ 1 << at // step % 8]) + raw[at + 1 :]
        yield raw[:at] + b"%d" % (at % 10) + raw[at + 1 :]
        if at // step % 3 == 0:
            yield raw[:at]


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_file_is_refused_or_says_to_the_libraries_what_it_says_here(small, tmp_path, format):
    path = tmp_path / {"tokenizer.json": "a.json", "tiktoken": "a.tiktoken"}.get(format, "a")
    write_tokenizer(small, path, format=format)
    files = [path / "vocab.json", path / "merges.txt", path / "tokenizer_config.json"] if path.is_dir() else [path]
    reading = {"special_tokens": small.special_ids, "pattern": "gpt2", "gaps": True}
    messages, accepted = [], 0
    for file in files:
        raw = file.read_bytes()
        for changed in damages(raw, max(1, len(raw) // 250)):
            if changed == raw:
                continue
            file.write_bytes(changed)
            try:
                back = read_tiktoken(path, **reading) if format == "tiktoken" else read_tokenizer(path)
            except (ContractError, InputError) as error:
                messages.append(str(error))
                continue
            accepted += 1
            theirs = encoder_of_the_library(path, format, back)
            for text in SAMPLES:
                assert back.encode(text, allowed_special="all") == theirs(text)
        file.write_bytes(raw)
    assert len(messages) > 5 * accepted
    for message in messages:
        assert all(word in message for word in (str(path), "expected", "found"))
        assert len(message) < 1500


def encoder_of_the_library(path: Path, format: str, back: Tokenizer):
    """How the library encodes, from the same damaged file; only the special tokens of GPT-2's files are given."""
    if format == "tokenizer.json":
        return lambda text: tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    if format == "tiktoken":
        ranks = load_tiktoken_bpe(str(path))
        pat = tiktoken_arguments(back)["pat_str"]
        made = tiktoken.Encoding("x", pat_str=pat, mergeable_ranks=ranks, special_tokens=back.special_ids)
        return lambda text: made.encode(text, allowed_special="all")
    model = tokenizers.models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"))
    whole = tokenizers.Tokenizer(model)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.add_special_tokens(list(back.special_tokens))
    return lambda text: whole.encode(text).ids
