"""All detectors together: silent on healthy runs, each symptom found soon and at its place, and a state that is a value."""

import copy
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.watch.detect import BUDGETS, CHANGES, bank, loaded, observe, saved, watch
from jaxlm.watch.detect.bank import QUIET
from tests.watch.detect.records import LAYERS, changed, healthy

ONSET = 260


@pytest.fixture(scope="module")
def records():
    return healthy(340)


@pytest.fixture(scope="module")
def warm(records):
    """The bank after the step before `ONSET`: states are values, so every test goes on from it."""
    state = bank()
    for record in records[: ONSET - 1]:
        state, alarms = observe(state, record)
        assert alarms == []
    return state


def after(warm, records):
    state, found = warm, []
    for record in records[ONSET - 1 :]:
        state, alarms = observe(state, record)
        found += alarms
    return found


def scaled(group, name, factor, layer=None):
    """A change that multiplies a figure of one layer, or of all, and keeps the totals true."""

    def change(record, _):
        values = record[group][name]
        if layer is None:
            record[group][name] = [v * factor for v in values] if isinstance(values, list) else values * factor
        else:
            values[layer] *= factor
        for total, parts in (("grad_norm", "grad_norms"), ("update_norm", "update_norms")):
            flat = [v for part in record[parts].values() for v in (part if isinstance(part, list) else [part])]
            record[total] = math.sqrt(sum(v * v for v in flat))

    return change


def put(name, value):
    return lambda record, _: record.update({name: value})


def times(name, factor):
    return lambda record, _: record.update({name: record[name] * factor})


def plus(name, more):
    return lambda record, _: record.update({name: record[name] + more})


def collapsed(record, _):
    record.update(similarity=0.99, loss=record["loss"] + 0.6)


SYMPTOMS = {
    "loss_spike": (plus("loss", 0.5), 1, 0, None),
    "loss_drop": (times("loss", 0.7), 5, 2, None),
    "loss_shift": (plus("loss", 0.6), None, 30, None),
    "loss_floor": (put("bits_per_byte", 0.1), None, 2, None),
    "grad_norm": (times("grad_norm", 9.0), None, 1, None),
    "layer_gradient": (scaled("grad_norms", "blocks/wq", 30.0, 2), None, 1, 2),
    "backward_norm": (scaled("backward", "residual_rms", 30.0, 1), None, 1, 1),
    "update_ratio": (scaled("update_norms", "blocks/wo", 3.0, 3), None, 1, 3),
    "attention_logits": (scaled("activations", "logit_max", 3.0, 1), None, 1, 1),
    "attention_entropy": (scaled("activations", "entropy", 0.2, 0), None, 1, 0),
    "exploding_layer": (scaled("activations", "mlp_max", 20.0, 2), None, 1, 2),
    "collapsed_layer": (scaled("activations", "attn_rms", 0.05, 2), None, 2, 2),
    "loss_spread": (times("loss_spread", 4.0), None, 1, None),
    "z_loss": (times("z_loss", 20.0), None, 2, None),
    "bytes_per_label": (times("bytes", 0.3), None, 2, None),
    "supervised_share": (put("supervised", 0.5), None, 2, None),
    "embedding_rows": (put("embed_rows_still", 0.9), None, 2, None),
    "representation_collapse": (collapsed, None, 7, None),
    "dead_layer": (scaled("grad_norms", "blocks/wq", 0.0, 1), None, 1, 1),
    "norm_sum": (times("param_norm", 1.01), None, 0, None),
    "parameter_jump": (scaled("param_norms", "blocks/wo", 1.01, 3), None, 0, 3),
    "learning_rate": (times("lr", 10.0), None, 0, None),
    "loss_scale": (put("loss_scale", 0.5), None, 0, None),
    "repeated_batch": (put("batch_crc", 7), 2, 1, None),
    "repeated_rows": (put("repeated_rows", 0.5), None, 3, None),
    "nonfinite": (lambda record, _: record["nonfinite_backward"].__setitem__(slice(0, 3), [1, 1, 1]), None, 0, 2),
}


@pytest.mark.parametrize("detector", SYMPTOMS)
def test_a_symptom_is_found_within_its_steps_at_its_layer(detector, warm, records):
    change, steps, within, layer = SYMPTOMS[detector]
    found = [alarm for alarm in after(warm, changed(records, ONSET, change, steps=steps)) if alarm.detector == detector]
    assert found, detector
    assert 0 <= found[0].step - ONSET <= within
    assert found[0].layer == layer
    assert found[0].advice == BUDGETS[detector].advice


def test_a_healthy_run_raises_no_alarm(warm, records):
    assert after(warm, records) == []


def test_the_budgets_keep_to_one_alarm_in_a_hundred_thousand_steps():
    assert sum(budget.alarms for budget in BUDGETS.values()) <= 1.0
    assert all(budget.alarms >= 0 and budget.why for budget in BUDGETS.values())


def test_what_goes_on_is_one_alarm_and_what_comes_back_is_another(warm, records):
    spike = plus("loss", 0.6)
    twice = changed(changed(records, ONSET, spike, steps=3), ONSET + 4 + QUIET + 3, spike, steps=3)
    assert [alarm.step - ONSET for alarm in after(warm, twice) if alarm.detector == "loss_spike"] == [0, QUIET + 7]


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(1, 70), seed=st.integers(0, 3))
def test_a_state_that_was_saved_as_json_goes_on_alike(cut, seed):
    rows = changed(healthy(80, seed=seed), 60, plus("loss", 3.0))
    state = bank()
    for record in rows[:cut]:
        state, _ = observe(state, record)
    again = loaded(json.loads(json.dumps(saved(state), allow_nan=False)))
    for record in rows[cut:]:
        state, alarms = observe(state, record)
        again, others = observe(again, record)
        assert repr(alarms) == repr(others)
    assert json.dumps(saved(state)) == json.dumps(saved(again))


def test_observing_leaves_the_old_state_as_it_was(warm, records):
    before = json.dumps(saved(warm))
    after(warm, changed(records, ONSET, plus("loss", 3.0)))
    assert json.dumps(saved(warm)) == before


def permuted(records, order):
    records = copy.deepcopy(records)
    for record in records:
        for group in ("grad_norms", "param_norms", "update_norms", "backward"):
            for name, values in record[group].items():
                if isinstance(values, list):
                    record[group][name] = [values[layer] for layer in order]
        for name in ("logit_max", "entropy"):
            record["activations"][name] = [record["activations"][name][layer] for layer in order]
    return records


@pytest.mark.parametrize("detector", ["layer_gradient", "update_ratio", "attention_logits", "dead_layer", "backward_norm"])
def test_permuted_layers_give_permuted_alarms(detector, records):
    order = random.Random(1).sample(range(LAYERS), LAYERS)
    change, _, _, layer = SYMPTOMS[detector]
    rows = changed(records[100:300], ONSET, change)  # 160 steps before it: fewer, and a jump must be larger
    found = [next(a for a in watch(r) if a.detector == detector) for r in (rows, permuted(rows, order))]
    assert found[0].layer == layer == order[found[1].layer]
    assert found[0]._replace(layer=None) == found[1]._replace(layer=None)


def test_steps_that_are_not_finite_poison_no_window(warm, records):
    nan = "nan"

    def spoil(record, _):
        record.update(loss=nan, grad_norm=nan, z_loss=nan, loss_spread=nan, finite=False, update_norm=0.0, nonfinite="embed")
        for group in ("grad_norms", "activations", "backward"):
            record[group] = {name: [nan] * LAYERS if isinstance(v, list) else nan for name, v in record[group].items()}
        record["update_norms"] = {
            name: [0.0] * LAYERS if isinstance(v, list) else 0.0 for name, v in record["update_norms"].items()
        }
        record["param_norms"] = records[ONSET - 2]["param_norms"]
        record["param_norm"] = records[ONSET - 2]["param_norm"]

    # The parameters of a skipped step stay, so the norms that follow are those of the healthy run, some steps on.
    alarms = after(warm, changed(records, ONSET, spoil, steps=1))
    assert {alarm.detector for alarm in alarms} <= {"nonfinite", "parameter_jump"}
    assert alarms[0].detector == "nonfinite"
    assert alarms[0].step == ONSET


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_declared_change_is_no_alarm(what, warm, records):
    state, _ = observe(warm, {"event": "declared", "step": ONSET - 1, "what": what})
    benign = {
        "warm restart": lambda record, _: record.update(lr=record["lr"] * 5, loss=record["loss"] + 0.3),
        "batch size": lambda record, _: record.update(labels=2048, bytes=record["bytes"] * 4, loss_spread=0.4),
        "mixture": lambda record, _: record.update(loss=record["loss"] + 0.8, bytes=record["bytes"] * 2, supervised=0.6),
        "pause": lambda record, _: None,
        "mesh": lambda record, _: None,
    }[what]
    found = []
    for record in changed(records, ONSET, benign)[ONSET - 1 :]:
        if what == "warm restart":  # the ratio of update and rate stays
            scaled_updates = {
                n: [v * 5 for v in u] if isinstance(u, list) else u * 5 for n, u in record["update_norms"].items()
            }
            record = record | {"update_norms": scaled_updates, "update_norm": record["update_norm"] * 5}
        state, alarms = observe(state, record)
        found += alarms
    assert found == []
    if what == "mixture":
        assert after(warm, changed(records, ONSET, benign)) != []


def test_an_unknown_declared_change_is_refused():
    with pytest.raises(ValueError, match="expected a declared change of"):
        observe(bank(), {"event": "declared", "step": 1, "what": "a better mood"})


def test_records_may_lack_everything_but_the_step(records):
    assert watch({"step": record["step"]} for record in records[:40]) == []
    old = [
        {k: record[k] for k in ("step", "loss", "grad_norm", "param_norm", "update_norm", "lr", "finite", "grad_norms")}
        for record in records
    ]
    assert watch(old) == []
    assert [a.detector for a in watch(changed(old, ONSET, plus("loss", 0.6), steps=1))] == ["loss_spike"]


def test_states_of_other_detectors_are_refused():
    state = saved(bank())
    del state["states"]["pace"]
    with pytest.raises(ValueError, match="expected the states of"):
        loaded(state)
