"""A collapse is told from the state that all runs pass through, in which they know nothing but how frequent tokens are."""

import numpy as np
import pytest

from jaxlm.watch.detect import watch
from tests.watch.detect.records import healthy


def run(similarity, loss, seed=0):
    """Records with these curves, and the noise of a small batch."""
    rng = np.random.default_rng(seed)
    records = healthy(len(similarity), seed=seed)
    for record, alike, nats in zip(records, similarity, loss, strict=True):
        record.update(similarity=float(alike), loss=float(nats + 0.03 * rng.standard_normal()))
    return records


def found(records):
    return [alarm.step for alarm in watch(records) if alarm.detector == "representation_collapse"]


# Similarity and loss of a small run: an untrained model, the frequencies of tokens, and then the text.
STEPS = np.arange(1, 401)
ALIKE = np.interp(STEPS, [1, 5, 10, 16, 60, 90, 200, 400], [0.25, 0.3, 0.74, 0.995, 0.997, 0.66, 0.45, 0.14])
LOSS = np.interp(STEPS, [1, 5, 10, 20, 50, 80, 400], [6.25, 6.25, 6.16, 5.65, 5.01, 4.78, 4.0])


@pytest.mark.parametrize("slow", [1, 4])
def test_learning_the_frequencies_of_tokens_is_none(slow):
    assert found(run(np.repeat(ALIKE, slow), np.repeat(LOSS, slow))) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_collapse_is_found_as_soon_as_it_has_lasted(seed):
    alike, loss = ALIKE.copy(), LOSS.copy()
    alike[300:], loss[300:] = 0.99, 5.1
    assert found(run(alike, loss, seed)) == [308]


def test_one_direction_at_no_cost_is_none():
    alike = ALIKE.copy()
    alike[300:] = 0.99
    assert found(run(alike, LOSS)) == []


def test_a_higher_loss_at_positions_that_are_told_apart_is_none():
    assert found(run(ALIKE, np.where(STEPS > 300, 6.0, LOSS))) == []


def test_records_without_the_figure_say_nothing():
    records = run(ALIKE, LOSS)
    for record in records:
        del record["similarity"]
    assert found(records) == []
