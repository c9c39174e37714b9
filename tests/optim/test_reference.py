"""The two computations of the learning rate agree at every step, compiled and not."""

import jax
import numpy as np
import pytest

from jaxlm.config.schema import OptimConfig
from jaxlm.optim import schedule_of
from jaxlm.optim.reference import learning_rates

CASES = [(400, 37), (400, 0), (7, 7), (1, 0), (1, 1), (5000, 4900)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_schedule_and_its_reference_agree_at_every_step(schedule, ratio):
    for steps, warmup in CASES:
        for share in (0.001, 0.2, 1.0):
            cfg = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=warmup, min_lr_ratio=ratio, decay_share=share)
            counts = np.arange(steps)
            found = np.asarray(jax.jit(schedule_of(cfg, steps))(counts), np.float64)
            np.testing.assert_allclose(found, learning_rates(cfg, steps, counts), rtol=1e-6, atol=5e-7 * cfg.lr)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_schedule_that_begins_anew_is_the_one_of_the_steps_that_are_left(schedule):
    first = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=11)
    anew = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=11, schedule_from=60)
    counts = np.arange(100)
    found = np.asarray(jax.jit(schedule_of(anew, 100))(counts), np.float64)
    np.testing.assert_allclose(found, learning_rates(anew, 100, counts), rtol=1e-6, atol=5e-7 * anew.lr)
    np.testing.assert_array_equal(learning_rates(anew, 100, counts)[60:], learning_rates(first, 40, counts[:40]))
    np.testing.assert_array_equal(found[:60], found[60])


def test_the_rates_of_a_run_by_hand():
    cfg = OptimConfig(lr=8.0, schedule="cosine", warmup_steps=4, min_lr_ratio=0.25)
    assert learning_rates(cfg, 8, np.arange(8)) == pytest.approx([2, 4, 6, 8, 5 + 3 * 0.5**0.5, 5, 5 - 3 * 0.5**0.5, 2])
    cfg = OptimConfig(lr=8.0, schedule="wsd", warmup_steps=2, min_lr_ratio=0.0, decay_share=0.5)
    assert learning_rates(cfg, 8, np.arange(8)) == pytest.approx([4, 8, 8, 8, 6, 4, 2, 0])
    cfg = OptimConfig(lr=8.0, schedule="constant", warmup_steps=16)
    assert learning_rates(cfg, 4, np.arange(4)) == pytest.approx([0.5, 1, 1.5, 2])
