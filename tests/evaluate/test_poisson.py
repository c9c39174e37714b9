"""The interval of a Poisson mean against published values and its own definition."""

import pytest

from jaxlm.evaluate.statistics import poisson_interval


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0.0, 3.6889), (1, 0.0253, 5.5716), (2, 0.2422, 7.2247), (10, 4.7954, 18.3904)]
)
def test_it_is_that_of_the_tables(count, low, high):
    assert poisson_interval(count) == pytest.approx((low, high), abs=1e-4)


def test_less_confidence_is_narrower():
    wide, narrow = poisson_interval(5), poisson_interval(5, confidence=0.5)
    assert wide[0] < narrow[0] < 5 < narrow[1] < wide[1]
