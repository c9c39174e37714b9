"""The order of rows: a permutation for every length and key, and one that looks drawn at random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import permute

PINNED = ([9, 3, 5, 4, 8, 1, 0, 6, 2, 7], [2, 9, 7, 4, 8, 5, 3, 6, 1, 0])


def permutation(n, *, seed=0, epoch=0):
    return permute(np.arange(n), n, seed=seed, epoch=epoch)


def test_it_is_a_bijection_for_every_length():
    for n in range(1, 201):
        for seed, epoch in ((0, 0), (n, 1), (123, n)):
            assert sorted(permutation(n, seed=seed, epoch=epoch)) == list(range(n)), (n, seed, epoch)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2**40), st.integers(0, 2**63), st.integers(0, 10**6), st.data())
def test_an_index_is_permuted_alone(n, seed, epoch, data):
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    together = permute(indices, n, seed=seed, epoch=epoch)
    assert together.tolist() == [int(permute(np.array([i]), n, seed=seed, epoch=epoch)[0]) for i in indices]
    assert together.dtype == np.int64
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together)) == len(set(indices))


def test_another_seed_and_another_epoch_are_other_orders():
    orders = {tuple(permutation(50, seed=seed, epoch=epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_the_order_is_the_one_that_runs_were_made_with():
    assert permutation(10, seed=0, epoch=0).tolist() == PINNED[0]
    assert permutation(10, seed=7, epoch=3).tolist() == PINNED[1]


@pytest.mark.parametrize("n", [5, 16, 17, 33])
def test_every_place_is_equally_likely_over_seeds(n):
    draws = 2000
    images = np.array([permutation(n, seed=seed, epoch=seed % 3) for seed in range(draws)])
    counts = np.stack([(images == place).sum(0) for place in range(n)])
    expected = draws / n
    freedom = (n - 1) ** 2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def looks_random(order):
    """Serial statistics of one long order, each with a bound of about five standard deviations."""
    n = len(order)
    index = np.arange(n)
    correlation = abs(np.corrcoef(index, order)[0, 1]) < 5 / n**0.5
    serial = abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / n**0.5
    steps = np.bincount((np.diff(order) % n) * 20 // n, minlength=20)
    differences = ((steps - (n - 1) / 20) ** 2 / ((n - 1) / 20)).sum() < 19 + 5 * 38**0.5
    distinct = len(set(np.diff(order) % n)) > n / 2
    return correlation and serial and differences and distinct


@pytest.mark.parametrize("n", [1000, 1024, 1025, 4095])
def test_one_order_looks_random(n):
    assert all(looks_random(permutation(n, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(2))


def test_orders_that_are_none_do_not_look_random():
    index = np.arange(1000)
    for order in (
        index,
        index[::-1],
        (index * 7 + 3) % 1000,
        (index * 387 + 11) % 1000,
        np.concatenate([index[1::2], index[::2]]),
    ):
        assert sorted(order) == list(index)
        assert not looks_random(order)


def test_two_epochs_are_not_correlated():
    orders = np.array([permutation(2000, seed=1, epoch=epoch) for epoch in range(6)])
    assert np.abs(np.corrcoef(orders) - np.eye(6)).max() < 5 / 2000**0.5


@pytest.mark.parametrize(("indices", "n"), [([0, 5], 5), ([-1], 5), ([0], 0)])
def test_indices_out_of_range_are_refused(indices, n):
    with pytest.raises(ValueError, match=rf"expected indices in 0\.\.{n - 1}, found"):
        permute(np.array(indices), n, seed=0, epoch=0)
