"""`.tiktoken` files: merges recovered from ranks; what is missing, damaged, or has no ranks that mean the same."""

from __future__ import annotations

import base64
import hashlib

import pytest
import tiktoken

from jaxlm.contract import ContractError, InputError
from jaxlm.interop import read_tiktoken, tiktoken_arguments, write_tiktoken
from jaxlm.tokenizer import Tokenizer

BYTES = [bytes([byte]) for byte in range(256)]


def content(tokens, first=0):
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens, first))


def test_merges_of_a_trained_tokenizer_are_recovered(layouts, tmp_path):
    for name, tok in layouts.items():
        write_tiktoken(tok, tmp_path / name)
        back = read_tiktoken(tmp_path / name, pattern=tok.pattern, special_tokens=tok.special_ids, gaps=name == "gaps")
        assert back.merges == tok.merges


def test_what_the_file_does_not_hold_is_asked_for(tmp_path):
    path = tmp_path / "a.tiktoken"
    path.write_bytes(content([*BYTES, b"ab"]))
    with pytest.raises(InputError, match=r"pattern: expected one of gpt2, .*the file holds no pattern"):
        read_tiktoken(path, pattern=None, special_tokens=())
    with pytest.raises(InputError, match=r"special_tokens: expected .* \(\) for none, found none"):
        read_tiktoken(path, pattern="gpt2", special_tokens=None)
    with pytest.raises(InputError, match=r"pattern: expected one of gpt2, .* found 'p50k'"):
        read_tiktoken(path, pattern="p50k", special_tokens=())
    for special, message in (("<|x|>", "one str"), (("<|x|>",) * 2, "2 times"), (("a",), "single byte"), ({"<|x|>": -1}, "-1")):
        with pytest.raises(InputError, match=f"special_tokens: expected .*{message}"):
            read_tiktoken(path, pattern="gpt2", special_tokens=special)
    with pytest.raises(
        InputError, match=r"id of its own for the special token '<\|x\|>', found 256, which is the rank of b'ab'"
    ):
        read_tiktoken(path, pattern="gpt2", special_tokens={"<|x|>": 256})
    assert read_tiktoken(path, pattern="gpt2", special_tokens=("<|x|>", "<|y|>")).special_ids == {"<|x|>": 257, "<|y|>": 258}


def test_the_sha256_is_compared(tmp_path):
    path = tmp_path / "a.tiktoken"
    path.write_bytes(content(BYTES))
    right = hashlib.sha256(content(BYTES)).hexdigest()
    read_tiktoken(path, pattern="gpt2", special_tokens=(), sha256=right)
    with pytest.raises(ContractError, match=f"expected sha256 {'0' * 64} at the file, found {right}"):
        read_tiktoken(path, pattern="gpt2", special_tokens=(), sha256="0" * 64)


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"", ContractError, "line 1, found an empty file"),
        (content(BYTES) + b"\n", ContractError, "line 257"),
        (content(BYTES) + b"YWI 256\n", ContractError, "base64, a space, its rank at line 257, found b'YWI 256'"),
        (content(BYTES) + b"YWJ= 256\n", ContractError, "line 257"),  # the last bits would be lost
        (content(BYTES) + b"Y*I= 256\n", ContractError, "line 257"),
        (content(BYTES) + b"YWI= 0256\n", ContractError, "line 257"),
        (content(BYTES) + b"YWI= -1\n", ContractError, "line 257"),
        (content(BYTES) + b"YWI=  256\n", ContractError, "line 257"),
        (content(BYTES) + b"YWI= 99999999999999999999\n", ContractError, "line 257"),
        (content(BYTES) + b"YQ== 256\n", ContractError, "a new token at line 257, found b'a' again, whose rank is 97"),
        (content(BYTES) + b"YWI= 255\n", ContractError, "a new rank at line 257, found 255, as in line 256"),
        (content(BYTES) + b"YWI= 258\n", ContractError, "a token, or a special token of this id at rank 256, found none"),
        (content(BYTES[1:], first=1), ContractError, "rank 0"),
        (content([*BYTES[:7], *BYTES[8:]]), InputError, "an entry for every byte, found none for 1: 0x07"),
        (content([*BYTES, b"abc"]), InputError, r"b'abc' of rank 256: expected two parts.*found 3: \[b'a', b'b', b'c'\]"),
        (content([*BYTES, b"abc", b"ab"]), InputError, "the token b'abc' of rank 256"),
        (content([*BYTES, b"ab", b"abab", b"bc", b"abc", b"abcd"]), None, ""),
        (content(BYTES)[:-1], None, ""),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_with_their_place(tmp_path, raw, error, message):
    path = tmp_path / "a.tiktoken"
    path.write_bytes(raw)
    if error is None:
        read_tiktoken(path, pattern="gpt2", special_tokens=())
        return
    with pytest.raises(error, match=message) as caught:
        read_tiktoken(path, pattern="gpt2", special_tokens=())
    assert str(path) in str(caught.value)


def test_a_special_token_or_leave_fills_a_gap(tmp_path):
    path = tmp_path / "a.tiktoken"
    path.write_bytes(content(BYTES) + b"YWI= 257\n")
    assert read_tiktoken(path, pattern="gpt2", special_tokens={"<|x|>": 256}).vocab[257] == b"ab"
    assert read_tiktoken(path, pattern="gpt2", special_tokens=(), gaps=True).vocab_size == 258
    with pytest.raises(ContractError, match="rank 256"):
        read_tiktoken(path, pattern="gpt2", special_tokens={"<|x|>": 258})


@pytest.mark.parametrize(
    ("merges", "ids", "message"),
    [
        # "bc" comes before "ab" by ids, and after it by merges.
        ([(b"a", b"b"), (b"b", b"c")], [*range(256), 257, 256], r"the id of b'bc': expected ids in the order of merges"),
        # In "abc" the merge of "ab" comes first, and so "abc" is never made; tiktoken would make it.
        ([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")], None, r"the id of b'abc': .* next b'a' and b'bc', found b'ab' and b'c'"),
        ([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"abc", b"d")], None, r"the id of b'abc'"),
        # "aaa" is merged as "aa", "a", but "a", "aa" is what it is made of.
        ([(b"a", b"a"), (b"a", b"aa")], None, r"the id of b'aaa'"),
        # No two parts at all: "abab" has the rank before "ab".
        ([(b"a", b"b"), (b"ab", b"ab")], [*range(256), 257, 256], r"the token b'abab' of rank 256: expected two parts"),
    ],
)
def test_merges_that_ranks_cannot_say_are_not_written(tmp_path, merges, ids, message):
    tok = Tokenizer(merges, (), "gpt2", ids=ids)
    for call in (lambda: write_tiktoken(tok, tmp_path / "a.tiktoken"), lambda: tiktoken_arguments(tok)):
        with pytest.raises(InputError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_merges_that_never_happen_are_no_hindrance(tmp_path):
    tok = Tokenizer([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")], (), "gpt2")
    write_tiktoken(tok, tmp_path / "a.tiktoken")
    back = read_tiktoken(tmp_path / "a.tiktoken", pattern="gpt2", special_tokens=())
    assert back.merges == tok.merges[:3]
    theirs = tiktoken.Encoding(**tiktoken_arguments(tok))
    for text in ("abc", "bcabc", "aabcbc abcabc"):
        assert theirs.encode(text) == tok.encode(text) == back.encode(text)


def test_arguments_say_all_that_an_encoding_needs(small):
    arguments = tiktoken_arguments(small, name="mine")
    assert set(arguments) == {"name", "pat_str", "mergeable_ranks", "special_tokens"}
    assert arguments["name"] == "mine"
    assert arguments["special_tokens"] == small.special_ids
    assert tiktoken.Encoding(**arguments).n_vocab == small.vocab_size == 401
