"""Identities and bounds: kept by a real training step, and each broken in turn."""

import itertools
import math

import jax
import numpy as np
import pytest

from jaxlm.watch.detect import Expected
from jaxlm.watch.detect.exact import FROZEN_RATIO, FROZEN_STEPS, VISIBLE, adam_bound, exact, observe
from tests.watch.detect.records import changed, healthy


def alarms(records, expected=Expected()):
    state, found = exact(), []
    for record in records:
        state, more = observe(state, record, expected)
        found += more
    return [(alarm.step, alarm.detector, alarm.what, alarm.layer) for alarm in found]


def test_the_healthy_run_keeps_everything():
    assert alarms(healthy(30), Expected(balanced=True, sizes={"embed": 1}, betas=(0.9, 0.95))) != []  # 1 element moves too far
    assert alarms(healthy(30), Expected(balanced=True)) == []


@pytest.mark.parametrize("total", ["grad_norm", "param_norm", "update_norm"])
def test_a_total_is_the_root_of_the_sum_of_squares_of_its_parts(total):
    rows = changed(healthy(6), 4, lambda record, _: record.update({total: record[total] * 1.005}), steps=1)
    assert alarms(rows) == [(4, "norm_sum", total, None)]


def test_a_parameter_that_moves_farther_than_its_update_is_named():
    def flip(record, _):
        record["param_norms"]["blocks/wo"][2] += 0.01
        record["param_norm"] = math.sqrt(sum(float(np.sum(np.square(v))) for v in record["param_norms"].values()))

    assert alarms(changed(healthy(8), 5, flip)) == [(5, "parameter_jump", "norm of blocks/wo", 2)]


def test_a_skipped_step_must_leave_the_parameters_alone():
    rows = changed(healthy(6), 4, lambda record, _: record.update(finite=False), steps=1)
    assert {(step, detector) for step, detector, *_ in alarms(rows)} == {(4, "parameter_jump")}


def test_a_parameter_that_its_updates_do_not_move_is_frozen():
    rows = healthy(30)
    still = rows[9]["param_norms"]["final_norm"]

    def freeze(record, _):
        record["param_norms"]["final_norm"] = still
        record["param_norm"] = math.sqrt(sum(float(np.sum(np.square(v))) for v in record["param_norms"].values()))

    frozen = [(10 + FROZEN_STEPS, "frozen_parameter", "norm of final_norm", None)]
    assert alarms(changed(rows, 11, freeze), Expected(sizes={"final_norm": 32})) == frozen
    assert alarms(changed(rows, 11, freeze), Expected(sizes={"final_norm": 10**9})) == []  # which could not show it
    assert alarms(changed(rows, 11, freeze)) == []


def walks(size, ratio, steps=60, layers=1000, seed=0):
    """Records of norms near 1 in equilibrium: the part of an update along its parameter is 1 / sqrt(size) of it, correlated
    from step to step as momentum makes it, and all else is at right angles and outweighed by decay."""
    rng = np.random.default_rng(seed)
    part, norm = rng.standard_normal(layers), np.float64(1.0) + rng.random(layers)
    for step in range(1, steps + 1):
        part = 0.9 * part + math.sqrt(1 - 0.9**2) * rng.standard_normal(layers)
        norm = norm * (1.0 + ratio * part / math.sqrt(size))
        found = {"param_norms": norm.astype(np.float32), "update_norms": ratio * norm}
        yield {"step": step, "lr": 1e-4, "finite": True} | {k: {"blocks/wq": v.tolist()} for k, v in found.items()}


def test_a_large_table_whose_norm_hardly_moves_is_not_frozen():
    size, rows = 10**9, list(walks(10**9, 2e-4, layers=10))
    still = [np.equal(a["param_norms"]["blocks/wq"], b["param_norms"]["blocks/wq"]) for a, b in itertools.pairwise(rows)]
    assert np.lib.stride_tricks.sliding_window_view(still, FROZEN_STEPS, axis=0).all(axis=-1).any()
    assert alarms(rows, Expected(sizes={"blocks/wq": size})) == []
    for size in (10**3, 10**6, 10**8):
        ratio = 1.01 * max(FROZEN_RATIO, VISIBLE * math.sqrt(size))
        assert alarms(walks(size, ratio), Expected(sizes={"blocks/wq": size})) == []


def test_the_residual_stream_keeps_to_its_triangle():
    def lose(record, _):
        record["activations"]["residual_rms"][2] = 5.0

    rows = changed(healthy(3), 2, lose, steps=1)
    assert alarms(rows, Expected(balanced=True)) == [(2, "residual_sum", "residual RMS after the block", 1)]
    assert alarms(rows, Expected(balanced=False)) == []


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.95), (0.9, 0.999), (0.0, 0.9), (0.95, 0.9)])
def test_the_bound_of_adam_is_reached_and_never_passed(b1, b2):
    for updates in (1, 2, 5, 30):
        weights = np.arange(updates)[::-1]
        # Equality in Cauchy and Schwarz: g proportional to (b1 / b2)^i.
        worst = (b1 / b2) ** weights if b1 else (weights == 0).astype(float)
        for gradients in [worst, *np.random.default_rng(updates).standard_normal((20, updates))]:
            m = (1 - b1) * np.sum(b1**weights * gradients) / (1 - b1**updates)
            v = (1 - b2) * np.sum(b2**weights * gradients**2) / (1 - b2**updates)
            share = abs(m) / math.sqrt(v)
            assert share <= adam_bound(b1, b2, updates) * (1 + 1e-9)
            if gradients is worst:
                assert share == pytest.approx(adam_bound(b1, b2, updates))
    assert adam_bound(b1, b2, 1) == pytest.approx(1.0)


def test_the_bound_has_its_limits():
    assert adam_bound(0.9, 0.0, 3) == math.inf
    assert adam_bound(0.0, 0.0, 3) == 1.0
    assert adam_bound(0.99, 0.9, 100_000) == math.inf
    assert adam_bound(0.9, 0.81, 4) > 1.0
    assert math.isfinite(adam_bound(0.9, 0.95, 1_000_000))


def test_an_update_that_adam_cannot_make_is_named_and_a_real_one_is_not():
    from jaxlm.optim import adamw

    params = {"w": jax.numpy.ones((4, 5)), "head": jax.numpy.ones((3,))}
    transform = adamw(0.01, b2=0.95, weight_decay=0.1, mask=None)
    state, rows = transform.init(params), []
    for step in range(1, 12):
        grads = jax.tree.map(lambda p, s=step: p * (-1.0) ** (s // 4) * s, params)
        updates, state = transform.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        norms = [{n: float(np.linalg.norm(np.ravel(v))) for n, v in tree.items()} for tree in (params, updates)]
        rows.append({"step": step, "lr": 0.01, "finite": True, "param_norms": norms[0], "update_norms": norms[1]})
    known = Expected(sizes={"w": 20, "head": 3}, betas=(0.9, 0.95), weight_decay=0.1)
    assert alarms(rows, known) == []
    tenfold = changed(rows, 3, lambda record, _: record["update_norms"].update(w=record["update_norms"]["w"] * 10))
    assert alarms(tenfold, known)[0][:3] == (3, "update_bound", "update of w")
    half_rate = [record | {"lr": 0.005} for record in rows]
    assert alarms(half_rate, known)[0][:2] == (1, "update_bound")
