"""Level shifts of the loss: found while it falls, within a number of steps, and not found where there are none."""

import json
import math

import numpy as np
import pytest

from jaxlm.watch.detect import cusum
from jaxlm.watch.detect.cusum import GAP, LEAST, follow, level
from jaxlm.watch.detect.packing import packed, unpacked


def losses(steps, *, seed=0, noise=0.02):
    """A power law with white noise."""
    at = np.arange(1, steps + 1)
    return 2.6 + 5.7 * (1 + at / 20) ** -0.5 + noise * np.random.default_rng(seed).standard_normal(steps)


def shifts(values):
    """The steps in which a shift is found."""
    state, found = level(), []
    for step, value in enumerate(values, 1):
        state, shift = follow(state, step, value)
        if shift is not None:
            found.append(step)
    return found


@pytest.mark.parametrize(("added", "within"), [(0.10, 12), (0.05, 35), (-0.10, None)])
def test_a_shift_is_found_soon_and_a_fall_is_none(added, within):
    delays = []
    for seed in range(5):
        values = losses(1000, seed=seed)
        values[800:] += added
        delays.append([step - 801 for step in shifts(values)][:1])
    if within is None:
        assert delays == [[]] * 5
    else:
        assert all(delay and 0 <= delay[0] <= within for delay in delays), delays


def test_a_ramp_is_found():
    values = losses(1000)
    values[800:] += 0.002 * np.arange(200)
    assert 801 <= shifts(values)[0] <= 860


def test_a_curve_that_bends_and_lone_spikes_are_no_shift():
    values = losses(1500, seed=3)
    values[[300, 700, 1200]] += 3.0
    assert shifts(values) == []


def test_the_height_of_the_shift_is_reported():
    values, state, found = losses(900, seed=1), level(), []
    values[800:] += 0.2
    for step, value in enumerate(values, 1):
        state, shift = follow(state, step, value)
        found += [] if shift is None else [shift]
    assert found[-1] == pytest.approx(0.2, abs=0.05)


def test_the_line_is_that_of_least_squares_and_of_wild_samples_hardly_another():
    x = np.log(np.arange(100, 300))
    y = 4.0 - 0.3 * x + 0.01 * np.random.default_rng(0).standard_normal(200)
    wild = y.copy()
    wild[::10] += 50.0
    for values in (y, wild):
        line = cusum._line(x, values, math.log(350))
        assert (line.intercept, line.slope) == pytest.approx((4.0, -0.3), abs=0.05)
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov="unscaled")
    assert (line_of := cusum._line(x, y, math.log(350))).slope == pytest.approx(slope, abs=0.005)
    assert line_of.intercept == pytest.approx(intercept, abs=0.03)
    at = np.array([math.log(350), 1.0])
    assert line_of.error == pytest.approx(math.sqrt(at @ covariance @ at), rel=1e-6)


def test_memory_is_that_of_the_series():
    rng = np.random.default_rng(0)
    for wanted in (0.0, 0.6):
        series = np.zeros(20_000)
        for at in range(1, len(series)):
            series[at] = wanted * series[at - 1] + rng.standard_normal()
        assert cusum._memory(series) == pytest.approx(wanted, abs=0.03)
    assert cusum._memory(np.zeros(9)) == 0.0


def test_the_first_verdict_comes_when_it_is_said_to():
    state, first = level(), None
    for step, value in enumerate(losses(400), 1):
        state, _ = follow(state, step, value)
        first = first or (step + 1 if state.scale else None)
    assert first == 2 * (LEAST + GAP) + 1


def test_a_state_comes_back_from_json_as_it_was():
    state = level()
    for step, value in enumerate(losses(150), 1):
        state, _ = follow(state, step, value)
    again = unpacked(level(), json.loads(json.dumps(packed(state))))
    assert type(again) is type(state)
    assert type(again.line) is cusum.Line
    for name in state._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))
