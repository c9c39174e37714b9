"""Compiled decoding against joining bytes in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled.decode import Decoder
from jaxlm.tokenizer.vocabulary import Vocabulary

MERGES = [(b"e", b"x"), (b"a", b"c"), (b"ex", b"ac"), (b"t", b"l"), (b"exac", b"tl"), (b"y", b"8"), (b"exactl", b"y8")]
VOCABULARY = Vocabulary.of(MERGES, {"<|z|>": 900, "é" * 200: 901}, [*range(10, 266), *range(300, 307)])
VOCAB = VOCABULARY.vocab


@settings(deadline=None)
@given(ids=st.lists(st.sampled_from(sorted(VOCAB)), max_size=40))
def test_bytes_are_those_of_joining(ids):
    assert Decoder(VOCABULARY).decode(np.array(ids, np.int32)) == b"".join(VOCAB[i] for i in ids)


@pytest.mark.parametrize("wrong", [-1, 3, 902, -(2**31), 2**31 - 1])
def test_what_is_no_id_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"expected ids in 0\.\.901 \(637 of which are none\), found {wrong}"):
        Decoder(VOCABULARY).decode(np.array([10, 300, wrong, 10], np.int32))
