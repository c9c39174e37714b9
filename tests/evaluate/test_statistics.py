"""The bootstrap interval: it covers what it says it covers, resamples documents, and repeats itself."""

import numpy as np
import pytest

from jaxlm.evaluate import bootstrap_ratio


def simulated(rng, n):
    """Bits and bytes of n documents with skewed lengths, a quality of their own, and 1.5 bits per byte in truth."""
    size = rng.integers(20, 400, n)
    return size * (1.5 + rng.normal(0, 0.4, n)), size


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered, width = 0, []
    for repetition in range(300):
        low, high = bootstrap_ratio(*simulated(rng, 80), resamples=300, confidence=0.9, seed=repetition)
        covered += low <= 1.5 <= high
        width.append(high - low)
    assert 0.84 <= covered / 300 <= 0.95
    # Delta method: the ratio's standard error is sd(bits - 1.5 bytes) / (mean bytes * sqrt(n)).
    bits, size = simulated(np.random.default_rng(1), 200_000)
    error = (bits - 1.5 * size).std() / (size.mean() * 80**0.5)
    assert np.mean(width) == pytest.approx(2 * 1.645 * error, rel=0.05)


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_the_interval_grows_with_the_confidence(confidence):
    bits, size = simulated(np.random.default_rng(0), 80)
    low, high = bootstrap_ratio(bits, size, resamples=2000, confidence=confidence, seed=0)
    ratio = bits.sum() / size.sum()
    error = (bits - ratio * size).std() / (size.mean() * 80**0.5)
    z = {0.5: 0.6745, 0.99: 2.5758}[confidence]
    assert (low, high) == pytest.approx((ratio - z * error, ratio + z * error), abs=0.4 * error)


def test_it_is_what_a_slow_bootstrap_over_documents_gives():
    bits, size = simulated(np.random.default_rng(3), 40)
    rng = np.random.default_rng(17)
    drawn = [rng.integers(0, 40, 40) for _ in range(20_000)]
    ratios = [bits[d].sum() / size[d].sum() for d in drawn]
    found = bootstrap_ratio(bits, size, resamples=20_000, confidence=0.8, seed=0)
    assert found == pytest.approx(np.quantile(ratios, [0.1, 0.9]), abs=3e-3)


def test_the_same_seed_is_the_same_interval_another_is_another():
    bits, size = simulated(np.random.default_rng(0), 30)
    found = {seed: bootstrap_ratio(bits, size, resamples=200, confidence=0.9, seed=seed) for seed in range(5)}
    assert len(set(found.values())) == 5
    assert all(bootstrap_ratio(bits, size, resamples=200, confidence=0.9, seed=seed) == found[seed] for seed in found)


def test_documents_that_are_all_alike_leave_no_doubt():
    low, high = bootstrap_ratio(np.full(9, 6.0), np.full(9, 4), resamples=50, confidence=0.9, seed=0)
    assert (low, high) == (1.5, 1.5)


def test_one_document_gives_no_interval():
    assert bootstrap_ratio(np.array([3.0]), np.array([2]), resamples=5, confidence=0.9, seed=0) is None


def test_draws_of_nothing_but_empty_documents_are_left_out():
    low, high = bootstrap_ratio(np.array([2.0, 0.0]), np.array([1, 0]), resamples=200, confidence=0.9, seed=0)
    assert (low, high) == (2.0, 2.0)


@pytest.mark.parametrize(("bits", "size"), [([], []), ([1.0], []), ([1.0, 2.0], [1]), ([1.0, np.nan], [1, 1]), ([1.0], [0])])
def test_nothing_unequal_or_not_finite_is_refused(bits, size):
    with pytest.raises(ValueError, match="expected"):
        bootstrap_ratio(np.array(bits), np.array(size), resamples=10, confidence=0.9, seed=0)
