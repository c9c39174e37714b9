"""Which engine encodes, and that the compiled one is not used where it makes other ids."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from jaxlm.contract import ContractError
from jaxlm.tokenizer import Tokenizer, choosing, engines, train_tokenizer
from jaxlm.tokenizer.compiled import decode as compiled_decode
from jaxlm.tokenizer.compiled import encode as compiled_encode


@pytest.fixture
def made(small):
    def make(engine: str = "auto") -> Tokenizer:
        return Tokenizer(small.merges, small.special_tokens, small.pattern, engine=engine)

    return make


def is_compiled(tok: Tokenizer) -> bool:
    return tok._engines.compiled(0) is not None


def test_compiled_code_comes_with_as_much_text_as_makes_it_worth_it(made, monkeypatch):
    asked = []
    monkeypatch.setattr(engines.ENCODING, "are_worth", lambda work: asked.append(work) or work >= 100)
    monkeypatch.setattr(engines, "FEW_CHARACTERS", 9)
    tok = made()
    for _ in range(9):
        tok.encode_ordinary("aa aaaa aa")
        assert tok._engines._compiled is None
    assert tok.encode_ordinary("aa aaaa aa") == made("portable").encode_ordinary("aa aaaa aa")
    assert is_compiled(tok)
    assert asked == [*range(10, 101, 10)]


def test_what_is_loaded_is_used_at_once(made):
    made("compiled").encode("aa")
    assert engines.ENCODING.are_loaded
    tok = made()
    tok.encode("aa" * engines.FEW_CHARACTERS)
    assert is_compiled(tok)


def test_short_calls_are_pythons_since_preparing_a_call_of_compiled_code_takes_longer(made, monkeypatch):
    made("compiled")
    tok, calls = made(), []
    monkeypatch.setattr(tok._engines, "compiled", lambda work: calls.append(work))
    few, ids = "a" * engines.FEW_CHARACTERS, [97] * engines.FEW_IDS
    tok.encode_batch_to_numpy([few[1:], "a"])
    tok.encode(few), tok.decode(ids)
    assert calls == []
    tok.encode_batch_to_numpy([few, "a"]), tok.decode([*ids, 97])
    assert calls == [len(few) + 1, len(ids) + 1]


def test_portable_stays_portable(made):
    made("compiled")
    tok = made("portable")
    assert tok.encode("aa" * 100) == made("compiled").encode("aa" * 100)
    assert not is_compiled(tok)


def test_a_text_longer_than_compiled_code_can_number_is_cut(made, monkeypatch):
    monkeypatch.setattr(engines, "LONGEST", 10)
    text = "aa aaa aaaa 'll aa x aaaaa aaaaaaaaaaaaaaaaaaaaaaa a"
    expected = made("portable").encode_ordinary(text)
    tok = made("compiled")
    assert tok.encode_ordinary(text) == expected
    assert [ids.tolist() for ids in tok.encode_batch_to_numpy([text, "", "aa"])] == [expected, [], [256]]


def test_ids_in_a_gap_are_refused_in_words_that_do_not_contradict_themselves():
    for engine in ("portable", "compiled"):
        tok = Tokenizer([], {"<|z|>": 1000}, "gpt2", engine=engine)
        with pytest.raises(ValueError, match=r"expected ids in 0\.\.1000 \(744 of which are none\), found 500"):
            tok.decode([500])


def test_an_unknown_engine_is_refused(made):
    with pytest.raises(ValueError, match="engine: expected one of auto, portable, compiled, found 'rust'"):
        made("rust")


def test_compiled_code_that_makes_other_ids_is_refused(made, monkeypatch):
    right = compiled_encode.Worker.encode
    monkeypatch.setattr(compiled_encode.Worker, "encode", lambda self, texts: [ids[::-1] for ids in right(self, texts)])
    with pytest.raises(ContractError, match=r"compiled encoder: expected the ids of the probe text .*engine='portable'"):
        made("compiled")


def test_compiled_code_that_makes_other_bytes_is_refused(made, monkeypatch):
    right = compiled_decode.Decoder.decode
    monkeypatch.setattr(compiled_decode.Decoder, "decode", lambda self, ids: right(self, ids)[:-1] + b"?")
    with pytest.raises(ContractError, match=r"compiled decoder: expected the bytes of the probe text .*engine='portable'"):
        made("compiled")


@pytest.mark.parametrize("engine", ["portable", "compiled"])
def test_decoding_takes_lists_arrays_and_iterators(made, engine):
    tok = made(engine)
    for ids in (
        [97, 256],
        (97, 256),
        iter([97, 256]),
        np.array([97, 256]),
        np.array([97, 256], np.uint16),
        [np.int64(97), 256],
    ):
        assert tok.decode_bytes(ids) == b"aaa"
    assert tok.decode_bytes([]) == tok.decode_bytes(np.zeros(0, np.int64)) == b""
    for bad in (-1, tok.vocab_size, 2**31, 2**40, -(2**40)):
        for ids in ([97, bad], np.array([97, bad])):
            with pytest.raises(ValueError, match=rf"expected ids in 0\.\.{tok.vocab_size - 1}, found {bad}"):
                tok.decode_bytes(ids)
    for bad in (97.0, "97", None):
        with pytest.raises(TypeError):
            tok.decode_bytes([bad])
    with pytest.raises(TypeError):
        tok.decode_bytes(np.array([97.0]))


def test_importing_the_room_imports_neither_numba_nor_jax():
    use = "import sys, jaxlm.tokenizer as t\nt.Tokenizer.from_merges([]).encode('a')\n"
    code = use + "print(*{'numba', 'jax'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("engine", ["auto", "portable", "compiled"])
def test_copies_and_other_processes_get_the_same_tokenizer(made, engine):
    tok = made(engine)
    tok.encode("aa aaa")
    for other in (pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok), copy.copy(tok)):
        assert other.fingerprint == tok.fingerprint
        assert other.encode("aa <|a|>", allowed_special="all") == tok.encode("aa <|a|>", allowed_special="all")
        assert is_compiled(other) == is_compiled(tok)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(tok.encode, "aa aaa").result() == tok.encode("aa aaa")


WITHOUT = """
import sys
blocked = sys.argv[1].split()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name) if "llvmlite" in blocked else ImportError(f"{name} wants another NumPy")
sys.meta_path.insert(0, Blocker())
from jaxlm.tokenizer import train_tokenizer
text = "".join(f"word {i} and more text {i * i} " for i in range(70_000))
tok = train_tokenizer([text], vocab_size=300)
print(len(tok.encode(text)), tok.fingerprint)
"""


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["numba", "numba llvmlite"])
def test_what_cannot_be_imported_is_done_without(tmp_path, missing):
    text = "".join(f"word {i} and more text {i * i} " for i in range(70_000))
    assert len(text) > choosing.COMPILE_BYTES
    tok = train_tokenizer([text], vocab_size=300)
    environment = {**os.environ, "JAXLM_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT, missing]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(tok.encode(text))), tok.fingerprint]
    assert ("tokenizers run without compiled code" in done.stderr) == (missing == "numba")
