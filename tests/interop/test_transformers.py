"""Written files in `transformers`: equal ids."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlm.interop import write_gpt2_files, write_tokenizer_json

pytestmark = pytest.mark.hf

PARTS = [
    "a",
    "self.",
    "'ll",
    "'S",
    "É",
    "e\u0301",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\u00a0",
    "1",
    "2345",
    "!?/",
    "你好",
    "\U0001f600",
    "ſ",
]
PARTS += ["<|endoftext|>", "<|user turn|>", "你好!", "ab<|x|>", "<|user"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pairs(transformers, layouts, tmp_path_factory):
    """Tokenizers, and what `transformers` makes of their files."""
    folder = tmp_path_factory.mktemp("transformers")
    found = []
    for name, tok in layouts.items():
        write_tokenizer_json(tok, folder / f"{name}.json")
        found.append((tok, transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / f"{name}.json"))))
        if tok.pattern == "gpt2":
            write_gpt2_files(tok, folder / name)
            for kind in ("GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"):
                if hasattr(transformers, kind):
                    found.append((tok, getattr(transformers, kind).from_pretrained(str(folder / name))))
    return found


@quick
@given(text=texts)
def test_ids_in_transformers_are_equal(pairs, text):
    for tok, theirs in pairs:
        ids = tok.encode(text, allowed_special="all")
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_ids_of_source_in_transformers_are_equal(pairs, stdlib_texts):
    for tok, theirs in pairs:
        for text in [stdlib_texts[0], stdlib_texts[-1]]:
            assert theirs.encode(text, add_special_tokens=False) == tok.encode(text)


def test_the_document_token_is_known_to_transformers(pairs):
    known = [(tok, theirs) for tok, theirs in pairs if theirs.eos_token is not None]
    for tok, theirs in known:
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tok.bos_id, tok.eos_id)
    assert len(known) >= (4 if pairs[0][0].pattern == "gpt2" else 0)
