"""Jumps and drifts of the signals: against scores computed in plain Python, and over records whose fields come and go."""

import math
import statistics

import numpy as np
import pytest

from jaxlm.watch.detect import Expected
from jaxlm.watch.detect.jumps import BLOCK, LEAST, LEAST_BLOCKS, YOUNG, jumps, observe
from jaxlm.watch.detect.robust import SIGMA
from jaxlm.watch.detect.signals import SIGNALS, rows, vector
from tests.watch.detect.records import changed, healthy


def run(records):
    state, found = jumps(), []
    for record in records:
        state, alarms = observe(state, record, Expected())
        found += alarms
    return found


def norms(values):
    return [{"step": step, "grad_norm": float(value)} for step, value in enumerate(values, 1)]


def noise(steps, *, seed=0, spread=0.1):
    return np.exp(spread * np.random.default_rng(seed).standard_normal(steps))


def test_two_steps_make_a_jump_and_one_does_not_unless_it_is_huge():
    values = noise(200)
    values[150] *= 6
    assert run(norms(values)) == []
    values[151] *= 6
    assert [(alarm.step, alarm.detector) for alarm in run(norms(values))] == [(152, "grad_norm")]
    values = noise(200)
    values[150] *= 1e3
    assert [alarm.step for alarm in run(norms(values))] == [151]


def test_the_score_is_the_robust_one_of_the_logarithm():
    values = noise(152)
    values[150:] *= 6
    (alarm,) = run(norms(values))
    # The baseline is that of the last refresh, after the 144th sample.
    past = [float(np.float32(math.log(v))) for v in values[144 - 64 : 144]]
    middle = statistics.median(past)
    scale = SIGMA * statistics.median(abs(v - middle) for v in past)
    assert alarm.value == pytest.approx((math.log(values[151]) - middle) / max(scale, 0.05), rel=1e-4)


def test_a_young_run_must_jump_farther():
    for step, found in ((LEAST - 10, False), (YOUNG - 20, False), (YOUNG + 10, True)):
        values = noise(YOUNG + 40)
        values[step : step + 2] *= 6
        assert bool(run(norms(values))) == found


def test_a_drift_is_found_that_no_step_shows():
    steps = BLOCK * (LEAST_BLOCKS + 12)
    growth = np.concatenate([np.zeros(BLOCK * (LEAST_BLOCKS + 2)), 0.02 * np.arange(BLOCK * 10)])
    values = 5.0 * noise(steps) * np.exp(growth)
    records = [{"step": s, "activations": {"logit_max": [4.0, float(v)]}} for s, v in enumerate(values, 1)]
    alarm = run(records)[0]
    assert (alarm.detector, alarm.layer) == ("attention_logits", 1)
    assert 0 < alarm.step - BLOCK * (LEAST_BLOCKS + 2) <= 5 * BLOCK
    assert (
        run([record | {"activations": {"logit_max": [4.0, float(v)]}} for record, v in zip(records, noise(steps), strict=True)])
        == []
    )


def test_the_earliest_layer_that_exploded_is_named():
    residual = noise(400 * 4, spread=0.03).reshape(400, 4)
    residual[300:, 2:] *= (6.0, 9.0)
    records = [{"step": s, "activations": {"residual_rms": row.tolist()}} for s, row in enumerate(residual, 1)]
    alarm = run(records)[0]
    assert (alarm.detector, alarm.layer, alarm.step) == ("exploding_layer", 2, 301)


def test_fields_that_come_and_go_leave_the_others_their_past():
    values = noise(200)
    values[150:152] *= 6
    records = norms(values)
    for record in records[150:]:
        record |= {"z_loss": 40.0}
    for record in records[100:110]:
        del record["grad_norm"]
    assert [(alarm.step, alarm.detector) for alarm in run(records)] == [(152, "grad_norm")]
    # A new field between the two steps of a jump does not begin it anew.
    records[150].pop("z_loss")
    assert [(alarm.step, alarm.detector) for alarm in run(records)] == [(152, "grad_norm")]


def test_the_vector_and_its_rows():
    record = {"step": 1, "lr": 0.1, "finite": True, "grad_norm": "nan", "z_loss": 0.0, "labels": 20, "bytes": 60}
    record |= {"update_norms": {"embed": 0.2, "blocks/wq": [0.1, 0.4]}, "param_norms": {"embed": 2.0, "blocks/wq": [0.0, 1.0]}}
    keys, sample = vector(record)
    table = rows(keys)
    named = dict(zip(zip(table.what, table.layer.tolist(), strict=True), sample.tolist(), strict=True))
    assert math.isnan(named["gradient norm", -1])
    assert math.isnan(named["log-sum-exp squared", -1])
    assert named["update ratio of embed", -1] == pytest.approx(math.log(0.2 / 2.0 / 0.1))
    assert math.isnan(named["update ratio of blocks/wq", 0])
    assert named["update ratio of blocks/wq", 1] == pytest.approx(math.log(4.0))
    assert named["bytes per label", -1] == pytest.approx(math.log(3.0))
    assert all(len(column) == len(sample) for column in (table.layer, table.z[0], table.steps[1], table.drift))
    assert {jump.detector for signal in SIGNALS for jump in (signal.up, signal.down) if jump} >= {"attention_logits", "z_loss"}


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_an_embedding_that_is_the_head_too_are_not_judged(tied):
    def lose(record, _):
        record["embed_rows_still"] = 0.9

    state, found = jumps(), []
    for record in changed(healthy(200), 150, lose):
        state, alarms = observe(state, record, Expected(tied=tied))
        found += [alarm.detector for alarm in alarms]
    assert set(found) == (set() if tied else {"embedding_rows"})
