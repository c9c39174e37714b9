"""Batches made ahead: in order, errors in their place, and no thread left behind."""

import threading
import time

import pytest

from jaxlm.data import Prefetcher


def alive():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def until(condition):
    """Wait for what another thread is about to do."""
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("depth", [0, 1, 2, 7, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, 25), (13, 20), (4, 4)])
def test_every_step_comes_once_and_in_order(depth, start, stop):
    with Prefetcher(lambda step: step * 10, start=start, stop=stop, depth=depth) as made:
        assert list(made) == [(step, step * 10) for step in range(start, stop)]
    assert not alive()


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt()])
def test_an_error_comes_where_its_batch_would_have_come(depth, error):
    def make(step):
        if step == 5:
            raise error
        return step

    seen = []
    with Prefetcher(make, start=2, stop=9, depth=depth) as made, pytest.raises(type(error)) as caught:  # noqa: PT012
        for step, batch in made:
            seen.append((step, batch))
    assert seen == [(2, 2), (3, 3), (4, 4)]
    assert caught.value is error
    assert not alive()


def test_nothing_is_made_after_an_error():
    calls = []

    def make(step):
        calls.append(step)
        raise ValueError

    with Prefetcher(make, start=0, stop=9, depth=4) as made:
        assert until(lambda: not alive())
        with pytest.raises(ValueError):  # noqa: PT011
            next(iter(made))
    assert calls == [0]


@pytest.mark.parametrize("depth", [1, 3])
def test_as_many_are_made_ahead_as_the_depth_says(depth):
    calls = []
    with Prefetcher(lambda step: calls.append(step), start=0, stop=50, depth=depth) as made:
        steps = iter(made)
        for taken in range(4):
            assert until(lambda taken=taken: len(calls) == taken + depth)
            time.sleep(0.05)
            assert calls == list(range(taken + depth))
            next(steps)


def test_without_depth_nothing_is_made_ahead_and_no_thread_started():
    calls = []
    with Prefetcher(lambda step: calls.append(step), start=0, stop=50, depth=0) as made:
        assert (calls, alive()) == ([], [])
        next(iter(made))
        assert (calls, alive()) == ([0], [])


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_closing_early_stops_the_thread(taken):
    calls = []
    with Prefetcher(lambda step: calls.append(step), start=0, stop=10**9, depth=2) as made:
        for _, _ in zip(range(taken), made, strict=False):
            pass
        assert alive()
    assert not alive()
    assert len(calls) <= taken + 3


def test_an_error_in_the_consumer_stops_the_thread():
    with pytest.raises(ZeroDivisionError), Prefetcher(lambda step: step, start=0, stop=10**9, depth=2):
        raise ZeroDivisionError
    assert not alive()


def test_closing_twice_is_closing_once():
    made = Prefetcher(lambda step: step, start=0, stop=10**9, depth=2)
    made.close()
    made.close()
    assert not alive()


def test_reading_on_after_the_end_is_an_error_and_does_not_wait_for_ever():
    with Prefetcher(lambda step: step, start=0, stop=100, depth=2) as made:
        steps = iter(made)
        next(steps)
    with pytest.raises(RuntimeError, match="closed"):
        next(steps)
    with Prefetcher(lambda step: step, start=0, stop=3, depth=2) as made:
        assert len(list(made)) == 3
        with pytest.raises(RuntimeError, match="given all its batches"):
            next(iter(made))
