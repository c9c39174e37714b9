"""Figures reduced for a screen, against NumPy over all steps at once: nothing that sticks out is lost, whatever the length."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.report.series import LEVELS, Series, curve, heat

FIGURES = st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0])


def oracle(steps, values, stride):
    """Bucket by bucket, in plain words: low, high, mean, steps of low and high, count, bad; [C, W] each."""
    columns = []
    for first in range(1, max(steps) + 1, stride):
        inside = [i for i, step in enumerate(steps) if first <= step < first + stride]
        rows = []
        for figure in range(values.shape[1]):
            finite = [(values[i, figure], steps[i]) for i in inside if np.isfinite(values[i, figure])]
            low = min(finite, default=(np.nan, 0))
            high = min(((-v, s) for v, s in finite), default=(np.nan, 0))
            mean = np.mean([v for v, _ in finite]) if finite else np.nan
            rows.append((low[0], -high[0], mean, low[1], high[1], len(finite), len(inside) - len(finite)))
        columns.append(rows)
    table = np.array(columns, np.float64).reshape(len(columns), values.shape[1], 7)
    return dict(zip(("low", "high", "mean", "low_step", "high_step", "count", "bad"), np.moveaxis(table, 2, 0), strict=True))


def gathered(steps, values, capacity):
    series = Series(values.shape[1], capacity=capacity)
    for step, row in zip(steps, values.tolist(), strict=True):
        series.add(step, row if len(row) > 1 else row[0])
    return series


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from([2, 8, 64]))
def test_buckets_are_those_of_numpy_over_all_steps(data, width, capacity):
    count = data.draw(st.integers(1, 60))
    gaps = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    steps = np.cumsum(gaps).tolist()
    values = np.array(data.draw(st.lists(st.lists(FIGURES, min_size=width, max_size=width), min_size=count, max_size=count)))
    series = gathered(steps, values, capacity)
    found = series.buckets()
    assert series.stride == max(1, 2 ** int(np.ceil(np.log2(max(steps) / capacity))))
    for name, expected in oracle(steps, values, series.stride).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-7, err_msg=name)


def test_a_spike_of_one_step_survives_any_reduction_with_its_step():
    steps = list(range(1, 20_001))
    values = np.ones((20_000, 2))
    values[12_344, 1] = 7.0
    values[15_000, 0] = -3.0
    series = gathered(steps, values, 64)
    found = series.buckets()
    assert series.stride == 512
    assert len(found["high"]) == 40
    assert found["high"].max(axis=0).tolist() == [1.0, 7.0]
    assert found["high_step"][found["high"][:, 1].argmax(), 1] == 12_345
    assert found["low_step"][found["low"][:, 0].argmin(), 0] == 15_001


def test_steps_that_come_again_count_twice():
    values = np.array([[1.0], [2.0], [9.0], [3.0], [4.0]])
    series = gathered([1, 2, 3, 2, 3], values, 4)
    found = series.buckets()
    assert found["count"][:, 0].tolist() == [1, 2, 2]
    assert found["high"][:, 0].tolist() == [1.0, 3.0, 9.0]
    assert found["low"][:, 0].tolist() == [1.0, 2.0, 4.0]


def test_reading_in_between_changes_nothing():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((700, 1))
    whole = gathered(range(1, 701), values, 32)
    series = Series(capacity=32)
    for step, value in enumerate(values[:, 0].tolist(), 1):
        series.add(step, value)
        if step % 13 == 0:
            series.buckets()
    for name, expected in whole.buckets().items():
        np.testing.assert_allclose(series.buckets()[name], expected, rtol=1e-12, err_msg=name)


def test_an_odd_capacity_is_refused():
    with pytest.raises(ValueError, match="expected an even capacity, found 3"):
        Series(capacity=3)


# ---- for the page ------------------------------------------------------------------------------------------------


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))


def test_a_curve_holds_every_bucket_with_a_value():
    steps, values = [1, 2, 5, 6, 9], np.array([[1.0], [3.0], [np.nan], [8.0], [np.inf]])
    body = curve(gathered(steps, values, 6))
    assert body["stride"] == 2
    assert unpacked(body["x"], np.uint32).tolist() == [1, 5]
    assert unpacked(body["mean"], np.float32).tolist() == [2.0, 8.0]
    assert unpacked(body["low"], np.float32).tolist() == [1.0, 8.0]
    assert unpacked(body["high"], np.float32).tolist() == [3.0, 8.0]
    assert unpacked(body["high_step"], np.uint16).tolist() == [1, 1]
    assert unpacked(body["bad"], np.uint32).tolist() == [5, 9]
    assert "last" not in body
    exact = curve(gathered([1, 2], np.array([[0.25], [0.5]]), 6))
    assert set(exact) == {"stride", "x", "mean", "last"}
    assert exact["last"] == [2, 0.5]
    assert curve(Series()) is None


@pytest.mark.parametrize("log", [False, True])
def test_the_cells_of_a_heat_map_give_the_figures_back(log):
    rng = np.random.default_rng(1)
    values = np.exp(4 * rng.standard_normal((50, 3)))
    values[10, 1] = np.nan
    steps = [step for step in range(1, 52) if step != 31]
    body = heat(gathered(steps, values, 64), reduce="high", log=log)
    levels = unpacked(body["cells"], np.uint16).reshape(body["columns"], body["layers"])
    assert (body["stride"], body["columns"], body["layers"]) == (1, 51, 3)
    assert (levels[30] == LEVELS + 1).all()
    assert (levels == LEVELS).sum() == 1
    assert levels[10, 1] == LEVELS
    found = body["low"] + levels / (LEVELS - 1) * (body["high"] - body["low"])
    expected = np.log10(values) if log else values
    some = np.isfinite(values)
    step = (body["high"] - body["low"]) / (LEVELS - 1)
    assert np.abs(np.delete(found, 30, axis=0) - expected)[some].max() <= step / 2 + 1e-9
    assert (body["from"], body["to"]) == pytest.approx(np.percentile(expected[some], [1, 99]))


def test_a_heat_map_of_one_value_of_zeros_and_of_nothing():
    assert heat(Series(2, capacity=4), reduce="high", log=True) is None
    zeros = heat(gathered([1, 2], np.zeros((2, 2)), 4), reduce="high", log=True)
    assert (zeros["low"], zeros["high"]) == (0.0, 0.0)
    bad = heat(gathered([1], np.full((1, 2), np.nan), 4), reduce="low", log=True)
    assert unpacked(bad["cells"], np.uint16).tolist() == [LEVELS, LEVELS]
