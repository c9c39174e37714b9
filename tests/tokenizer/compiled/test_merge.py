"""Compiled merging against the Python one, which goes with its own tests."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizer.compiled.encode import Tables, Worker
from jaxlm.tokenizer.compiled.jit import compiled
from jaxlm.tokenizer.compiled.merge import SHORT, PairTable, product_at
from jaxlm.tokenizer.merging import NONE, merge
from jaxlm.tokenizer.vocabulary import Vocabulary


@st.composite
def merges(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Random merges over three letters, some of which make what an earlier one makes of other parts."""
    parts, found = [b"a", b"b", b"c"], []
    for _ in range(draw(st.integers(0, 14))):
        pair = draw(st.tuples(st.sampled_from(parts), st.sampled_from(parts)).filter(lambda p: p not in found))
        found.append(pair)
        parts.append(pair[0] + pair[1])
    return found


@settings(max_examples=300, deadline=None)
@given(merges(), st.lists(st.sampled_from("abc"), min_size=1, max_size=6 * SHORT).map("".join))
def test_short_and_long_pretokens_are_merged_as_in_python(pairs, text):
    vocabulary = Vocabulary.of(pairs, ())
    worker = Worker(Tables(vocabulary, "gpt2"), rows=16, arena=64)
    expected = merge(list(text.encode()), vocabulary.product)
    for _ in range(2):  # merged, then remembered
        assert worker.encode([text.encode()])[0].tolist() == expected


@compiled
def look(pairs, shift, mask, a, b):
    return product_at(pairs, shift, mask, a, b)


def test_a_table_of_pairs_holds_every_pair_and_no_other():
    rng = np.random.default_rng(0)
    pairs = {(int(a), int(b)): int(v) for a, b, v in rng.integers(0, 1 << 24, (3000, 3))}
    table = PairTable(pairs)
    assert table.mask + 1 >= 2 * len(pairs)
    for (a, b), product in pairs.items():
        assert look(table.address, table.shift, table.mask, a, b) == product
        assert look(table.address, table.shift, table.mask, a + (1 << 25), b) == NONE
    assert look(PairTable({}).address, 60, 15, 1, 2) == NONE


def test_a_pretoken_of_a_megabyte_is_merged_in_memory_of_its_own():
    vocabulary = Vocabulary.of([(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")], ())
    ids = Worker(Tables(vocabulary, "gpt2"), rows=16, arena=64).encode([b"a" * ((1 << 20) + 5)])[0]
    assert ids.tolist() == [257] * (1 << 18) + [258]
