"""Compiled decoding against joining bytes in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled.decode import Decoder

VOCAB = {0: b"a", 1: b"", 2: b"exactly8", 5: bytes(range(256)), 6: "é".encode(), 900: b"<|z|>"}


@settings(deadline=None)
@given(ids=st.lists(st.sampled_from(sorted(VOCAB)), max_size=40))
def test_bytes_are_those_of_joining(ids):
    assert Decoder(VOCAB).decode(np.array(ids, np.int32)) == b"".join(VOCAB[i] for i in ids)


@pytest.mark.parametrize("wrong", [-1, 3, 901, -(2**31), 2**31 - 1])
def test_what_is_no_id_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"expected ids in 0\.\.900, found {wrong}"):
        Decoder(VOCAB).decode(np.array([0, 5, wrong, 0], np.int32))
