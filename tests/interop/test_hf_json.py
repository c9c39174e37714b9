"""`tokenizer.json`: files that `tokenizers` trains and writes, conversions of Llama 3's kind, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxlm.contract import ContractError, InputError
from jaxlm.interop import read_tokenizer_json, tiktoken_arguments, write_tokenizer_json
from jaxlm.interop.byte_alphabet import written
from jaxlm.interop.patterns import ONIGURUMA
from jaxlm.tokenizer import Tokenizer

EXTRA = "abc ſ's 12345 \r\n\n  你好 <|endoftext|> <|x|>\U0001f600\u00a0\t"


def write(path: Path, body) -> Path:
    path.write_bytes(json.dumps(body, ensure_ascii=False).encode())
    return path


@pytest.fixture
def body(small: Tokenizer, tmp_path: Path) -> dict:
    """What is in the file of `small`."""
    write_tokenizer_json(small, tmp_path / "small.json")
    return json.loads((tmp_path / "small.json").read_bytes())


# ---- files of tokenizers -----------------------------------------------------------------------------------------


def test_files_are_byte_for_byte_those_that_tokenizers_writes(layouts, tmp_path):
    for name, tok in layouts.items():
        write_tokenizer_json(tok, tmp_path / name)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / name))
        assert theirs.to_str(pretty=True).encode() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ONIGURUMA)
def test_a_tokenizer_that_tokenizers_trains_is_read_with_its_ids(name, stdlib_texts, tmp_path):
    theirs = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(ONIGURUMA[name][-1]), "isolated", invert=False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(stdlib_texts, trainer)
    theirs.add_tokens(["<|late|>"])
    theirs.save(str(tmp_path / "a.json"))
    tok = read_tokenizer_json(tmp_path / "a.json")
    assert tok.pattern == name
    assert tok.special_ids == {"<|endoftext|>": 1, "<s>": 0, "<|late|>": 700}
    for text in [*stdlib_texts[:6], stdlib_texts[-1], EXTRA, "<|late|>x<s>"]:
        ids = theirs.encode(text).ids
        assert tok.encode(text, allowed_special="all") == ids
        assert tok.decode(ids) == text


def test_merges_of_older_files_are_strings(small, body, tmp_path):
    body["model"]["merges"] = [" ".join(pair) for pair in body["model"]["merges"]]
    for name in ("type", "byte_fallback", "ignore_merges"):
        del body["model"][name]
    body["pre_tokenizer"].pop("use_regex")
    body["decoder"].pop("use_regex")
    back = read_tokenizer_json(write(tmp_path / "old.json", body))
    assert (back.merges, back.vocab) == (small.merges, small.vocab)


@pytest.mark.parametrize(
    "processor",
    [
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|x|> $A", pair=None, special_tokens=[("<|x|>", 400)]),
    ],
)
def test_what_comes_after_the_model_changes_no_ids_of_text(small, processor, tmp_path):
    write_tokenizer_json(small, tmp_path / "a.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "a.json"))
    theirs.post_processor = processors.Sequence([processor, processors.ByteLevel()])
    theirs.save(str(tmp_path / "b.json"))
    tok = read_tokenizer_json(tmp_path / "b.json")
    assert tok.encode(EXTRA, allowed_special="all") == theirs.encode(EXTRA, add_special_tokens=False).ids


def test_fields_that_change_no_ids_are_accepted(small, body, tmp_path):
    body["model"] |= {"unk_token": "<|x|>", "fuse_unk": True, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    body["decoder"] = None
    split = {"type": "Split", "pattern": {"Regex": ONIGURUMA["gpt2"][1]}, "behavior": "Removed", "invert": True}
    body["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, {**body["pre_tokenizer"], "use_regex": False}]}
    for token in body["added_tokens"]:
        token |= {"special": False, "normalized": True}
    path = write(tmp_path / "a.json", body)
    tok = read_tokenizer_json(path)
    assert (tok.vocab, tok.special_ids, tok.pattern) == (small.vocab, small.special_ids, "gpt2")
    assert tokenizers.Tokenizer.from_file(str(path)).encode(EXTRA).ids == tok.encode(EXTRA, allowed_special="all")


# ---- Llama 3 -----------------------------------------------------------------------------------------------------


def converted(tok: Tokenizer) -> dict:
    """The ranks of `tok` as Hugging Face converts them: for each token every way to split it, special tokens added only."""
    special = set(tok.special_ids.values())
    ranks = {token: number for number, token in tok.vocab.items() if number not in special}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        ways = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        merges += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    vocab = {written(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    theirs = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[(written(a), written(b)) for a, b in merges], ignore_merges=True)
    )
    split = pre_tokenizers.Split(tokenizers.Regex(ONIGURUMA[tok.pattern][0]), "isolated", invert=False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(list(tok.special_tokens))
    return json.loads(theirs.to_str())


def test_a_conversion_like_that_of_llama_3_is_read_with_its_ids(trained, stdlib_texts, tmp_path):
    path = write(tmp_path / "llama.json", converted(trained))
    stated = [tuple(merge) for merge in json.loads(path.read_bytes())["model"]["merges"]]
    theirs = tokenizers.Tokenizer.from_file(str(path))
    tok = read_tokenizer_json(path)
    assert tok.vocab == trained.vocab
    assert len(trained.merges) < len(tok.merges) < len(stated)  # those that join what is made later are left out
    for text in [*stdlib_texts, EXTRA]:
        ids = theirs.encode(text).ids
        assert tok.encode(text, allowed_special="all") == trained.encode(text, allowed_special="all") == ids
    again = tiktoken_arguments(tok)["mergeable_ranks"]
    assert again == tiktoken_arguments(trained)["mergeable_ranks"]


def test_ignore_merges_that_matters_is_refused(body, tmp_path):
    body["model"]["ignore_merges"] = True
    read_tokenizer_json(write(tmp_path / "a.json", body))
    body["model"]["merges"].append(["Ġa", "b"])
    body["model"]["merges"].remove(["Ġ", "ab"])
    with pytest.raises(
        InputError, match=r"model\.ignore_merges: .* found true, and b' ab' with id 305, which merges leave in 2 "
    ):
        read_tokenizer_json(write(tmp_path / "b.json", body))


def test_ignore_merges_with_a_special_token_that_is_written_like_text_is_refused(body, tmp_path):
    body["model"]["ignore_merges"] = True
    body["model"]["vocab"]["Ġx"] = 500
    body["added_tokens"].append({**body["added_tokens"][0], "content": "Ġx", "id": 500})
    with pytest.raises(InputError, match=r"the added token 'Ġx', which is how b' x' is written"):
        read_tokenizer_json(write(tmp_path / "a.json", body))


def test_a_merge_of_what_is_made_later_is_refused_where_it_happens(body, tmp_path):
    # "bd" is made after "abd", and in "abd" it is what "a" is joined with.
    body["model"]["vocab"] |= {"xd": 500, "yxd": 501}
    body["model"]["merges"] += [["y", "xd"], ["x", "d"]]
    with pytest.raises(InputError, match=r"merge 7: expected bytes or earlier merges, found b'y' and b'xd'"):
        read_tokenizer_json(write(tmp_path / "a.json", body))


# ---- refusals ----------------------------------------------------------------------------------------------------

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BARE = {**LEVEL, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": ONIGURUMA["cl100k"][0]}, "behavior": "Isolated", "invert": False}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, r"normalizer: expected null, found NFC\(\); it would change ids"),
        ("normalizer", {"type": "Lowercase"}, r"Lowercase"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, r"Sequence"),
        ("truncation", {"max_length": 5, "strategy": "LongestFirst"}, r"truncation: expected null, found .*max_length=5"),
        ("padding", {"strategy": "BatchLongest"}, r"padding: expected null"),
        ("version", "2.0", r"version: expected '1.0', found '2.0'"),
        ("chat", 1, r"chat: expected no such field, found 1"),
        ("decoder", {"type": "WordPiece", "prefix": "##"}, r"decoder: expected ByteLevel, found WordPiece\(prefix='##'\)"),
        ("decoder", {"type": "Metaspace"}, r"Metaspace"),
        ("post_processor", {"type": "BertProcessing", "sep": ["a", 1]}, r"post_processor: .* found BertProcessing"),
        ("post_processor", {"type": "RobertaProcessing", "add_prefix_space": True}, r"RobertaProcessing"),
        ("post_processor", {"type": "Sequence", "processors": [{"type": "BertProcessing"}]}, r"BertProcessing"),
        ("pre_tokenizer", None, r"pre_tokenizer: expected ByteLevel, or Split and then ByteLevel, found null"),
        ("pre_tokenizer", {"type": "Whitespace"}, r"found Whitespace\(\)"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "_"}, r"found Metaspace\(replacement='_'\)"),
        ("pre_tokenizer", {**LEVEL, "add_prefix_space": True}, r"=false, found ByteLevel\(add_prefix_space=True"),
        ("pre_tokenizer", {"type": "ByteLevel"}, r"add_prefix_space=false, found ByteLevel\(\)"),
        ("pre_tokenizer", BARE, r"expected ByteLevel with use_regex=true"),
        ("pre_tokenizer", {**LEVEL, "more": 1}, r"pre_tokenizer\.more: expected no such field"),
        ("pre_tokenizer", sequence(SPLIT, LEVEL), r"expected ByteLevel with use_regex=false"),
        ("pre_tokenizer", sequence({"type": "Digits", "individual": True}, BARE), r"found Digits\(individual=True\)"),
        ("pre_tokenizer", sequence(SPLIT, SPLIT, BARE), r"found Split\("),
        ("pre_tokenizer", sequence(SPLIT), r"Split and then ByteLevel, found Split"),
        ("pre_tokenizer", sequence({**SPLIT, "behavior": "MergedWithNext"}, BARE), r"behavior='MergedWithNext'"),
        ("pre_tokenizer", sequence({**SPLIT, "invert": True}, BARE), r"invert=True"),
        ("pre_tokenizer", sequence({**SPLIT, "pattern": {"String": " "}}, BARE), r"expression known as .* \{'String': ' '\}"),
        ("pre_tokenizer", sequence({**SPLIT, "pattern": {"Regex": r"\p{N}| ?\w+"}}, BARE), r"found '\\\\p\{N\}\| \?\\\\w\+'"),
        ("model.type", "WordPiece", r'model\.type: expected "BPE", found "WordPiece"'),
        ("model.type", "Unigram", r'found "Unigram"'),
        ("model.dropout", 0.1, r"model\.dropout: expected null or 0 or 0\.0, found 0\.1"),
        ("model.dropout", False, r"found false"),
        ("model.byte_fallback", True, r"model\.byte_fallback: expected null or false, found true"),
        ("model.continuing_subword_prefix", "##", r'expected null or "", found "##"'),
        ("model.end_of_word_suffix", "</w>", r'expected null or "", found "</w>"'),
        ("model.ignore_merges", 1, r"model\.ignore_merges: expected null or false or true, found 1"),
        ("model.new", 1, r"model\.new: expected no such field, found 1"),
        ("model.vocab.Ā", None, r"vocabulary: expected an entry for every byte, found none for 1: 0x00"),
        ("model.vocab.zz", 900, r"bytes or made by merges, found 1 that none makes, as b'zz' with id 900"),
        ("model.vocab.你", 900, r"entries in GPT-2's characters for bytes, or added tokens, found '你'"),
        ("added_tokens.0.lstrip", True, r"added_tokens\[0\]\.lstrip: expected false, found True for '<\|endoftext\|>'"),
        ("added_tokens.1.rstrip", True, r"added_tokens\[1\]\.rstrip"),
        ("added_tokens.1.single_word", True, r"added_tokens\[1\]\.single_word"),
        ("added_tokens.1.color", 1, r"added_tokens\[1\]\.color: expected no such field"),
    ],
)  # fmt: skip
def test_what_would_change_ids_is_refused_by_its_name(body, tmp_path, field, value, message):
    *path, last = field.split(".")
    at = body
    for name in path:
        at = at[int(name) if name.isdigit() else name]
    if field == "model.vocab.Ā":
        del at[last]
    else:
        at[last] = value
    file = write(tmp_path / "a.json", body)
    with pytest.raises(InputError, match=message) as caught:
        read_tokenizer_json(file)
    assert str(file) in str(caught.value)


def test_what_tokenizers_finds_in_two_passes_is_refused_where_that_matters(body, tmp_path):
    body["added_tokens"][1]["normalized"] = True
    read_tokenizer_json(write(tmp_path / "a.json", body))
    body["model"]["vocab"]["|><|"] = 500
    body["added_tokens"].append({**body["added_tokens"][0], "content": "|><|", "id": 500})
    with pytest.raises(InputError, match=r"'<\|x\|>' with true and '\|><\|' with false, which can overlap"):
        read_tokenizer_json(write(tmp_path / "b.json", body))


def test_added_tokens_that_are_text_too_are_refused(body, tmp_path):
    for name, number in (("ab", 300), ("a", body["model"]["vocab"]["a"])):
        changed = json.loads(json.dumps(body))
        changed["added_tokens"].append({**body["added_tokens"][0], "content": name, "id": number})
        with pytest.raises(InputError, match=f"added tokens: expected texts that are no other entry .* found '{name}'"):
            read_tokenizer_json(write(tmp_path / "a.json", changed))


def test_added_tokens_have_the_ids_that_tokenizers_gives_them(tmp_path):
    tok = Tokenizer([(b"a", b"b")], ("<|x|>", "<|y|>"), "o200k")
    write_tokenizer_json(tok, tmp_path / "a.json")
    body = json.loads((tmp_path / "a.json").read_bytes())
    for name in ("<|x|>", "<|y|>"):
        del body["model"]["vocab"][name]
    file = write(tmp_path / "b.json", body)
    theirs = tokenizers.Tokenizer.from_file(str(file))
    assert read_tokenizer_json(file).encode("ab<|y|>", allowed_special="all") == theirs.encode("ab<|y|>").ids == [256, 258]
    body["added_tokens"][1]["id"] = 300
    file = write(tmp_path / "c.json", body)
    assert tokenizers.Tokenizer.from_file(str(file)).encode("<|y|>").ids == [258]
    with pytest.raises(ContractError, match=r"expected 258 for '<\|y\|>', the next that no entry .* found 300"):
        read_tokenizer_json(file)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"expected JSON at line 1, column 1"),
        (b"{", r"expected JSON at line 1, column 2"),
        (b"[]", r"a value of type dict at the top, found list \[\]"),
        (b'{"a": 1, "a": 2}', r"different names in a JSON object at 'a', found 'a' twice"),
        (b'{"version": "1.0"}', r"a value of type dict at model, found null"),
        (b'{"a": "\xff"}', r"expected UTF-8 at byte 7, found 0xff"),
        (b"[" * 200_000, r"expected JSON at some place"),
        (b"1" * 5000, r"expected JSON at some place"),
        (b"\xef\xbb\xbf{}", r"expected JSON at line 1"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(tmp_path, raw, message):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(ContractError, match=message) as caught:
        read_tokenizer_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["model"]["vocab"].update({"ab": 301}), r"at model\.vocab\['Ġa'\], found 301 of 'ab' too"),
        (lambda body: body["model"]["vocab"].update({"ab": True}), r"type int at model\.vocab\['ab'\], found bool True"),
        (lambda body: body["model"]["vocab"].update({"ab": 1.0}), r"type int at .*found float 1\.0"),
        (lambda body: body["model"]["vocab"].update({"ab": -1}), r"found ids: expected numbers in 0\.\.16777215, found -1"),
        (lambda body: body["model"]["vocab"].update({"ab": 10**30}), r"expected a tokenizer at"),
        (lambda body: body["model"]["vocab"].pop("ab"), r"tokens of the vocabulary at merge 0, found b'ab'"),
        (lambda body: body["model"].update({"vocab": []}), r"type dict at model\.vocab, found list"),
        (lambda body: body["model"].update({"merges": {}}), r"type list at model\.merges, found dict"),
        (lambda body: body["model"]["merges"].append(["a", "b", "c"]), r"two tokens .* at model\.merges\[7\]"),
        (lambda body: body["model"]["merges"].append("a b c"), r"two tokens .* at model\.merges\[7\]"),
        (lambda body: body["model"]["merges"].append(["a", 1]), r"two tokens .* at model\.merges\[7\]"),
        (lambda body: body["model"]["merges"].append(["a", "你"]), r"two tokens .* at model\.merges\[7\]"),
        (lambda body: body["model"]["merges"].append(7), r"type list at model\.merges\[7\], found int 7"),
        (lambda body: body["model"]["merges"].append(["q", "z"]), r"tokens of the vocabulary at merge 7, found b'qz'"),
        (lambda body: body["model"]["merges"].append(["a", "b"]), r"something new at rank 7"),
        (lambda body: body["added_tokens"].append(body["added_tokens"][0]), r"different added tokens at added_tokens\[2\]"),
        (lambda body: body["added_tokens"][0].update({"id": 7}), r"expected 0 for '<\|endoftext\|>', as in model\.vocab"),
        (lambda body: body["added_tokens"][0].update({"content": 7}), r"type str at added_tokens\[0\]\.content"),
        (lambda body: body["added_tokens"].append(7), r"type dict at added_tokens\[2\], found int 7"),
        (lambda body: body.update({"added_tokens": {}}), r"type list at added_tokens"),
        (lambda body: body.update({"pre_tokenizer": 7}), r"type dict at pre_tokenizer"),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_are_refused(body, tmp_path, change, message):
    change(body)
    with pytest.raises(ContractError, match=message) as caught:
        read_tokenizer_json(write(tmp_path / "a.json", body))
    assert str(tmp_path / "a.json") in str(caught.value)


def test_an_added_token_that_is_no_special_token_is_refused(body, tmp_path):
    body["model"]["vocab"]["\ud800x"] = 500
    body["added_tokens"].append({**body["added_tokens"][0], "content": "\ud800x", "id": 500})
    (tmp_path / "a.json").write_text(json.dumps(body))
    with pytest.raises(ContractError, match="lone surrogate"):
        read_tokenizer_json(tmp_path / "a.json")
