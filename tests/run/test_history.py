"""Which batch a step of a run gets, and which checkpoints are of steps that were taken back."""

import numpy as np
import pytest

from jaxlm.run import History
from jaxlm.run.history import checkpoint_before


def rollback(step, to):
    fields = {"past": step - to, "undone": "", "sha256": "", "removed": {}}
    return {"event": "rollback", "step": step, "to": to, **fields}


def lived(rollbacks, steps):
    """The plain account: batches by step as they are trained on one after another, and how many were taken at each step, before
    each rollback and in the end."""
    trained, taken, states = [], 0, [{0: 0}]
    for step, to in [*rollbacks, (steps, steps)]:
        while len(trained) < step:
            trained.append(taken)
            taken += 1
            states[-1][len(trained)] = taken
        trained = trained[:to]
        states.append({done: cursor for done, cursor in states[-1].items() if done <= to})
    return trained, states


@pytest.mark.parametrize("seed", range(20))
def test_a_step_gets_the_batch_that_the_run_came_to(seed):
    draw = np.random.default_rng(seed)
    events, pairs, done = [{"event": "start", "step": 0}], [], 0
    for _ in range(int(draw.integers(0, 5))):
        step = done + int(draw.integers(1, 9))
        done = int(draw.integers(0, step))
        pairs.append((step, done))
        events.append(rollback(step, done))
    history = History.of(events)
    trained, states = lived(pairs, steps=60)
    assert [history.index(at) for at in range(len(trained))] == trained
    assert {at: history.cursor(at) for at in states[-1]} == states[-1]
    for old in states[:-1]:
        for at, cursor in old.items():
            assert history.undone(at, cursor) == (states[-1][at] != cursor)
    assert not history.undone(done, 10_000)


def test_without_rollbacks_the_batch_is_the_step():
    history = History.of([{"event": "start", "step": 0}, {"event": "save", "step": 4}])
    assert [history.index(7), history.cursor(7), history.cursor(0)] == [7, 7, 0]
    assert not history.undone(7, 3)


def alarm(step, detector="grad_norm"):
    return {"event": "alarm", "step": step, "detector": detector}


def save(step):
    return {"event": "save", "step": step}


@pytest.mark.parametrize(
    ("events", "to"),
    [
        ([], 8),
        ([save(4), save(8), alarm(10)], 8),
        ([save(4), alarm(7), save(8), alarm(10)], 4),
        ([save(4), alarm(7, "loss_spike"), save(8), alarm(10)], 8),
        ([save(4), alarm(4), save(8), alarm(10)], 8),
        ([save(4), alarm(8), save(8), alarm(10)], 4),
        ([alarm(3), save(4), alarm(7), save(8), alarm(10)], 0),
        # Of steps that were taken back, or are done again after a kill, nothing counts.
        ([save(4), alarm(7), rollback(7, 4), save(8), alarm(10)], 8),
        ([save(4), alarm(7), {"event": "start", "step": 4}, save(8), alarm(10)], 8),
        # A save that is no longer kept bounds the steps of the next one all the same.
        ([save(4), alarm(5), save(6), save(8), alarm(10)], 8),
    ],
)
def test_a_good_checkpoint_has_no_alarm_of_the_detector_in_its_own_steps(events, to):
    assert checkpoint_before(events, step=10, detector="grad_norm", saved=[4, 8]) == to


def test_a_checkpoint_is_before_the_alarm():
    assert checkpoint_before([], step=8, detector="grad_norm", saved=[4, 8, 12]) == 4
    assert checkpoint_before([], step=3, detector="grad_norm", saved=[]) == 0
