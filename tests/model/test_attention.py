"""Masks and the attention of a model config: positions, ranges, refusals."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import Mask
from jaxlm.model.attention import attend
from jaxlm.parallel import PRESETS
from pallas_kernels import attention_float64

RULES = PRESETS["single"]


def seen(mask, keys, row=0):
    return [np.flatnonzero(line).tolist() for line in mask.ranges.mask(keys)[row]]


def test_a_causal_mask_counts_from_zero_and_sees_the_past():
    mask = Mask.causal(2, 3)
    assert mask.positions_BT.tolist() == [[0, 1, 2]] * 2
    assert seen(mask, 3, row=1) == [[0], [0, 1], [0, 1, 2]]
    assert seen(Mask.causal(1, 4, window=2), 4) == [[0], [0, 1], [1, 2], [2, 3]]


def test_packed_documents_keep_their_positions_and_do_not_see_each_other():
    segments, positions = jnp.asarray([[3, 3, 0, 7, 7, 7]]), jnp.asarray([[0, 1, 0, 0, 1, 2]])
    mask = Mask.packed(segments, positions)
    assert mask.positions_BT is positions
    assert seen(mask, 6) == [[0], [0, 1], [], [3], [3, 4], [3, 4, 5]]
    assert seen(Mask.packed(segments, positions, window=1), 6) == [[0], [1], [], [3], [4], [5]]


def test_cached_queries_stand_at_their_slots_and_padding_on_either_side_sees_nothing():
    mask = Mask.cached(jnp.asarray([[5, 5, 2, 3], [0, 1, 5, 5]]), capacity=5, window=3)
    assert seen(mask, 5) == [[], [], [0, 1, 2], [1, 2, 3]]
    assert seen(mask, 5, row=1) == [[0], [0, 1], [], []]
    assert mask.positions_BT[0, 2:].tolist() == [2, 3]
    assert mask.positions_BT[1, :2].tolist() == [0, 1]
    assert int(mask.positions_BT.max()) < 5


@pytest.mark.parametrize(("segments", "positions"), [((2, 4), (2, 5)), ((4,), (4,)), ((2, 4), (1, 4))])
def test_segments_and_positions_of_different_shapes_are_refused(segments, positions):
    with pytest.raises(ValueError, match="expected shape"):
        Mask.packed(jnp.ones(segments, jnp.int32), jnp.zeros(positions, jnp.int32))


@pytest.mark.parametrize("cap", [0.0, 0.8])
def test_attention_takes_ranges_and_cap_of_the_model(cap, tiny):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    mask = Mask.packed(jnp.asarray([[1] * 6, [1, 1, 2, 2, 0, 0]]), jnp.asarray([list(range(6)), [0, 1, 0, 1, 0, 1]]), window=2)
    out = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), mask, tiny(attention_softcap=cap), RULES).out_BTNH
    expected, *_ = attention_float64(q, k, v, *mask.ranges, cap)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    assert (np.asarray(out)[1, 4:] == 0).all()
    assert dataclasses.replace(mask, positions_BT=mask.positions_BT + 1).ranges is mask.ranges
