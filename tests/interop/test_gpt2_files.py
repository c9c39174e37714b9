"""`vocab.json` and `merges.txt`: headers, special tokens, other names; against `tokenizers`, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from jaxlm.contract import ContractError, InputError
from jaxlm.interop import read_gpt2_files, write_gpt2_files
from jaxlm.interop.byte_alphabet import CHARACTERS, written
from jaxlm.tokenizer import Tokenizer


@pytest.fixture
def folder(small: Tokenizer, tmp_path: Path) -> Path:
    write_gpt2_files(small, tmp_path / "out")
    return tmp_path / "out"


def change(path: Path, **entries):
    body = json.loads(path.read_text())
    body.update(entries)
    path.write_text(json.dumps(body))


def test_files_are_byte_for_byte_those_that_tokenizers_writes(layouts, tmp_path):
    for name, tok in layouts.items():
        if tok.pattern != "gpt2":
            continue
        write_gpt2_files(tok, tmp_path / name)
        made = models.BPE.from_file(str(tmp_path / name / "vocab.json"), str(tmp_path / name / "merges.txt"))
        (tmp_path / f"{name}-theirs").mkdir()
        made.save(str(tmp_path / f"{name}-theirs"))
        for file in ("merges.txt", "vocab.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name}-theirs" / file).read_bytes()


def test_ids_are_those_of_tokenizers(layouts, tmp_path, stdlib_texts):
    for name, tok in layouts.items():
        if tok.pattern != "gpt2":
            continue
        write_gpt2_files(tok, tmp_path / name)
        model = models.BPE.from_file(str(tmp_path / name / "vocab.json"), str(tmp_path / name / "merges.txt"))
        theirs = tokenizers.Tokenizer(model)
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        theirs.add_special_tokens(list(tok.special_tokens))
        text = "<|endoftext|>".join([*stdlib_texts[:3], stdlib_texts[-1], "<|user turn|>"])
        back = read_gpt2_files(tmp_path / name)
        assert theirs.encode(text).ids == tok.encode(text, allowed_special="all") == back.encode(text, allowed_special="all")


def test_a_first_line_is_a_header_only_if_it_says_so(folder):
    merges = [(b"#", b"#"), (b"##", b"##")]
    vocab = {character: byte for byte, character in enumerate(CHARACTERS)} | {"##": 256, "####": 257}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").unlink()
    for text in ("#version: 0.2\n# #\n## ##\n", "# #\n## ##\n", "# #\n## ##", "#version: 0.1\n# #\n## ##"):
        (folder / "merges.txt").write_text(text)
        assert read_gpt2_files(folder).merges == merges
    (folder / "merges.txt").write_text("# #\n#version x\n## ##\n")
    with pytest.raises(InputError, match="line 2: expected #version in the first line only, found '#version x'"):
        read_gpt2_files(folder)


def test_a_merge_that_readers_take_for_a_header_is_not_written(tmp_path):
    parts = [b"#version"[:n] for n in range(1, 8)]
    merges = [*((a, b"#version"[len(a) : len(a) + 1]) for a in parts), (b"#version", b":")]
    with pytest.raises(InputError, match="expected merges that do not begin with #version, found '#version :'"):
        write_gpt2_files(Tokenizer(merges, (), "gpt2"), tmp_path / "out")
    write_gpt2_files(Tokenizer(merges[:-1], (), "gpt2"), tmp_path / "out")
    assert read_gpt2_files(tmp_path / "out").merges == merges[:-1]


def test_other_patterns_are_not_written_and_are_read_when_named(layouts, folder, tmp_path):
    tok = layouts["plain"]
    if tok.pattern != "gpt2":
        with pytest.raises(InputError, match=f"expected a tokenizer with the pattern gpt2, found {tok.pattern}"):
            write_gpt2_files(tok, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert read_gpt2_files(folder, pattern=tok.pattern).pattern == tok.pattern


def test_special_tokens_come_from_the_config_or_the_caller(small, folder):
    assert read_gpt2_files(folder).special_ids == small.special_ids
    assert read_gpt2_files(folder, special_tokens=("<|x|>", "<|endoftext|>", "<|new|>")).special_ids == {
        "<|endoftext|>": 0,
        "<|x|>": 400,
        "<|new|>": 401,
    }
    given = {"<|x|>": 400, "<|endoftext|>": 0, "<|new|>": 299}
    assert read_gpt2_files(folder, special_tokens=given).special_ids == given
    with pytest.raises(InputError, match=r"'<\|x\|>': expected id 7, as special_tokens has it, found 400 in the file"):
        read_gpt2_files(folder, special_tokens={"<|x|>": 7})
    with pytest.raises(InputError, match="found one str"):
        read_gpt2_files(folder, special_tokens="<|x|>")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"found 1 that none makes, as b'<\|x\|>' with id 400; if it is a special token"):
        read_gpt2_files(folder)
    assert read_gpt2_files(folder, special_tokens=("<|x|>", "<|endoftext|>")).special_ids == small.special_ids


def test_special_tokens_come_from_the_files_of_older_versions_too(small, folder):
    """Without added_tokens_decoder: ids in added_tokens.json, roles in the config or in special_tokens_map.json."""
    config = folder / "tokenizer_config.json"
    body = json.loads(config.read_text())
    del body["added_tokens_decoder"]
    config.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"found 1 that none makes, as b'<\|x\|>' with id 400; if it is a special token"):
        read_gpt2_files(folder)
    for roles in ({"additional_special_tokens": ["<|x|>"]}, {"extra_special_tokens": {"x": "<|x|>"}}, {"pad_token": "<|x|>"}):
        (folder / "special_tokens_map.json").write_text(json.dumps(roles))
        assert read_gpt2_files(folder).special_ids == small.special_ids
    (folder / "added_tokens.json").write_text(json.dumps({"<|im|>": 6000}))
    assert read_gpt2_files(folder).special_ids == {**small.special_ids, "<|im|>": 6000}
    assert read_gpt2_files(folder).encode("a<|im|>b", "all") == [*small.encode("a"), 6000, *small.encode("b")]
    config.unlink()
    assert read_gpt2_files(folder).special_ids == {**small.special_ids, "<|im|>": 6000}
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": {"content": "<|no|>", "__type": "AddedToken"}}))
    with pytest.raises(InputError, match=r"map\.json: cls_token: expected a special token of the other files, found"):
        read_gpt2_files(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": {"content": "<|x|>", "lstrip": True}}))
    with pytest.raises(InputError, match=r"map\.json: cls_token\.lstrip: expected false"):
        read_gpt2_files(folder)


def test_tokens_of_the_files_beside_that_the_config_does_not_list_are_refused(folder):
    (folder / "added_tokens.json").write_text(json.dumps({"<|im|>": 6000}))
    with pytest.raises(InputError, match=r"added_tokens\.json: '<\|im\|>': expected the special token of id 6000"):
        read_gpt2_files(folder)


def test_the_document_token_is_that_of_the_config(folder):
    assert read_gpt2_files(folder).special_tokens[0] == "<|endoftext|>"
    for value in ("<|x|>", {"content": "<|x|>", "special": True}):
        change(folder / "tokenizer_config.json", bos_token=value, eos_token=value)
        assert read_gpt2_files(folder).special_tokens[0] == "<|x|>"
        assert read_gpt2_files(folder, document_token="<|endoftext|>").special_tokens[0] == "<|endoftext|>"
    change(folder / "tokenizer_config.json", bos_token="<|x|>", eos_token="<|endoftext|>")
    assert read_gpt2_files(folder).special_tokens[0] == "<|endoftext|>"


def test_files_of_other_names_are_read(small, folder):
    (folder / "vocab.json").rename(folder / "gpt2_vocab.json")
    (folder / "merges.txt").rename(folder / "gpt2_merges.txt")
    assert read_gpt2_files(folder, vocab="gpt2_vocab.json", merges="gpt2_merges.txt").merges == small.merges
    with pytest.raises(InputError, match=r"vocab\.json: expected a file of a tokenizer, found none"):
        read_gpt2_files(folder)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"add_prefix_space": True}, InputError, "add_prefix_space: expected false, found True"),
        ({"tokenizer_class": "Qwen2Tokenizer"}, InputError, "tokenizer_class: expected GPT2Tokenizer, found 'Qwen2Tokenizer'"),
        ({"added_tokens_decoder": []}, ContractError, "type dict at added_tokens_decoder, found list"),
        ({"added_tokens_decoder": {"x": {}}}, ContractError, "expected ids at added_tokens_decoder, found 'x'"),
        (
            {"added_tokens_decoder": {"7": {"content": "<|x|>"}}},
            ContractError,
            r"expected 400 for '<\|x\|>', as in model.vocab",
        ),
        ({"added_tokens_decoder": {"400": {"content": "<|x|>", "lstrip": True}}}, InputError, "lstrip: expected false"),
    ],
)
def test_configs_that_change_ids_are_refused(folder, entries, error, message):
    change(folder / "tokenizer_config.json", **entries)
    with pytest.raises(error, match=message) as caught:
        read_gpt2_files(folder)
    assert str(folder / "tokenizer_config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#version: 0.2\na b\n\n", r"two tokens in GPT-2's characters at line 3, found ''"),
        ("#version: 0.2\na b c\n", r"line 2, found 'a b c'"),
        ("#version: 0.2\na  b\n", r"line 2"),
        ("#version: 0.2\na b\r\n", r"line 2"),
        ("#version: 0.2\na 你\n", r"line 2"),
        ("a b\na b\n", r"found merges: expected something new at rank 1"),
        ("a x\n", r"expected tokens of the vocabulary at merge 0, found b'ax'"),
    ],
)
def test_damaged_merges_are_refused_with_their_line(folder, text, message):
    vocab = {character: byte for byte, character in enumerate(CHARACTERS)} | {written(b"ab"): 256}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").unlink()
    (folder / "merges.txt").write_text(text, newline="")
    with pytest.raises(ContractError, match=message):
        read_gpt2_files(folder)


def test_names_that_meet_are_not_written(tmp_path):
    tok = Tokenizer([(b" ", b"a")], ("Ġa",), "gpt2")
    with pytest.raises(InputError, match="a name of its own for every token, found 'Ġa' for the ids 256 and 257"):
        write_gpt2_files(tok, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
