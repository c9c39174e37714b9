"""Spikes of a finished run, and by how many steps something else moved before them."""

import numpy as np
import pytest

from jaxlm.watch.detect import forecast
from jaxlm.watch.detect.forecast import HORIZON, spikes
from jaxlm.watch.detect.public_rules import WIDTH, observe, public_rules
from tests.watch.detect.records import changed, healthy


def test_a_precursor_is_counted_from_the_spike():
    rows = healthy(300)
    lead = 9
    rows = changed(
        rows, 200, lambda r, k: r["update_norms"].update({"blocks/wq": [v * 8 for v in r["update_norms"]["blocks/wq"]]})
    )
    rows = changed(rows, 200 + 1 + lead, lambda record, _: record.update(loss=record["loss"] + 2.0), steps=4)
    for record in rows:
        record.pop("update_norm")
    (spike,) = forecast(rows)
    assert (spike.step, spike.last, spike.recovered) == (210, 213, True)
    assert spike.height == pytest.approx(2.0, abs=0.2)
    assert spike.precursor.detector == "update_ratio"
    assert spike.lead == lead


def test_a_spike_without_a_precursor_and_one_whose_precursor_is_too_old():
    rows = changed(healthy(420), 400, lambda record, _: record.update(loss=record["loss"] + 2.0), steps=1)
    assert [(s.step, s.precursor, s.lead) for s in forecast(rows)] == [(400, None, None)]
    early = changed(rows, 400 - HORIZON - 20, lambda record, _: record.update(grad_norm=record["grad_norm"] * 20), steps=3)
    assert [s.lead for s in forecast(early)] == [None]
    assert forecast(healthy(200)) == []


def test_spikes_are_seen_from_after_the_end():
    losses = 3.0 + 0.02 * np.random.default_rng(0).standard_normal(400)
    assert spikes(losses) == []
    losses[[100, 104]] += 1.0
    losses[200] = np.nan
    losses[300:] += 2.0
    assert [(first, last) for first, last, *_ in spikes(losses)][:2] == [(100, 104), (200, 200)]
    assert spikes(losses)[0][:1:-1] == (True, pytest.approx(1.0, abs=0.1))
    tail = 3.0 + 0.02 * np.random.default_rng(1).standard_normal(200)
    tail[190:] += 2.0
    assert [(first, last, recovered) for first, last, _, recovered in spikes(tail)] == [(190, 199, False)]


def test_the_public_rules():
    rng, state = np.random.default_rng(0), public_rules()
    for step in range(WIDTH):
        state, fired = observe(
            state, {"step": step, "loss": 3 + 0.1 * rng.standard_normal(), "grad_norm": 1.0 + 0.1 * rng.random()}
        )
        assert fired == []
    past = state.losses
    limit = past.mean() + 6 * np.sqrt(np.sum((past - past.mean()) ** 2) / (WIDTH - 1))
    for loss, norm, rules in (
        (limit + 1e-6, 1.0, ["six_sigma"]),
        (limit - 1e-6, 1.0, []),
        (3.0, 9.0, ["six_sigma"]),
        ("nan", 1.0, ["nan_loss", "six_sigma"]),
        (3.0, "nan", ["six_sigma"]),
    ):
        after, fired = observe(state, {"step": 200, "loss": loss, "grad_norm": norm})
        assert fired == rules
        assert np.isfinite(after.losses).all()
        assert np.isfinite(after.norms).all()
