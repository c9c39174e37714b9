"""Compiled merging of whole pre-tokens against the Python one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled.encode import Engine
from jaxlm.tokenizer.compiled.merge import SHORT
from jaxlm.tokenizer.compiled.pretokens import merge_pretokens
from jaxlm.tokenizer.merging import merge
from jaxlm.tokenizer.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of([(b"a", b"a"), (b" ", b"a"), (b"aa", b"aa"), (b"\xff", b"a"), (b"a", b" a")], (), None)
pretokens = st.lists(st.sampled_from([b"a", b" ", b"\xff", b"\n"]), max_size=3 * SHORT).map(b"".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(pretokens, min_size=1, max_size=5))
def test_each_is_merged_as_one_pretoken_whatever_is_in_it(pretokens):
    expected = [merge(list(pretoken), VOCABULARY.product) for pretoken in pretokens]
    assert [tokens.tolist() for tokens in merge_pretokens(Engine(VOCABULARY, "gpt2"), pretokens)] == expected
