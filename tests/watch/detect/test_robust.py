"""The running median against one computed of the whole past in plain Python."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.watch.detect.robust import REFRESH, SIGMA, median_scale, push, robust_z, window

VALUES = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


def plain(values):
    """Median and scale of the finite ones of a list, as textbooks have it."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return math.nan, math.nan
    middle = statistics.median(finite)
    return middle, SIGMA * statistics.median(abs(v - middle) for v in finite)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=40))
def test_the_window_holds_the_last_finite_samples(samples):
    state = window(3, 7)
    for sample in samples:
        state = push(state, np.array(sample))
    for signal in range(3):
        kept = [np.float32(s[signal]) for s in samples if math.isfinite(s[signal])][-7:]
        found = state.values[signal]
        assert found[np.isfinite(found)].tolist() == kept
    refreshed = len(samples) if len(samples) <= REFRESH else len(samples) - len(samples) % REFRESH
    past = window(3, 7)
    for sample in samples[:refreshed]:
        past = push(past, np.array(sample))
    for signal in range(3):
        middle, scale = plain([float(v) for v in past.values[signal]])
        assert state.median[signal] == pytest.approx(middle, rel=1e-5, abs=1e-5, nan_ok=True)
        assert state.scale[signal] == pytest.approx(scale, rel=1e-4, abs=1e-4, nan_ok=True)


def test_a_sample_that_is_not_finite_never_enters_and_never_scores():
    state = window(1, 8)
    for value in (1.0, math.nan, 2.0, math.inf, 3.0, -math.inf):
        state = push(state, np.array([value]))
    assert state.filled.tolist() == [3]
    assert state.median.tolist() == [2.0]
    assert np.isnan(robust_z(np.array([math.inf]), state, least=0.1, samples=3)[0])
    assert robust_z(np.array([2.0 + SIGMA]), state, least=0.1, samples=3)[0] == pytest.approx(1.0)


def test_too_few_samples_give_no_score():
    state = push(window(1, 8), np.array([1.0]))
    assert np.isnan(robust_z(np.array([9.0]), state, least=0.1, samples=2)[0])
    assert robust_z(np.array([9.0]), state, least=0.1, samples=1)[0] == pytest.approx(80.0)


def test_the_smallest_scale_holds_where_a_signal_does_not_move():
    state = window(1, 8)
    for _ in range(8):
        state = push(state, np.array([5.0]))
    assert robust_z(np.array([5.5]), state, least=0.25, samples=8)[0] == pytest.approx(2.0)


def test_half_of_the_samples_may_be_wild():
    median, scale, filled = median_scale(np.array([[1.0, 1.1, 0.9, 1e9, -1e9, 1.05, 0.95]]))
    assert filled.tolist() == [7]
    assert abs(median[0] - 1.0) < 0.06
    assert scale[0] < 0.2


def test_pushing_leaves_the_old_state_as_it_was():
    old = push(window(2, 4), np.array([1.0, 2.0]))
    before = old.values.copy()
    push(old, np.array([3.0, math.nan]))
    np.testing.assert_array_equal(old.values, before)
