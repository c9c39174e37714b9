"""Records as named figures: nested names, layers, truth values, words for NaN."""

import math

from jaxlm.watch.figures import figures


def test_every_figure_has_its_name_and_nothing_else_is_one():
    record = {
        "step": 3,
        "loss": 2.5,
        "bits_per_byte": None,
        "finite": False,
        "clipped": True,
        "grad_norm": "inf",
        "nonfinite": "blocks/wq[1]",
        "grad_norms": {"embed": "nan", "blocks/wq": [1, "-inf"]},
        "validation": {"loss": 2},
        "batch_crc": 123,
        "alarms": ["a"],
        "chain": "00",
    }
    found = figures(record)
    assert math.isnan(found.pop("grad_norms/embed"))
    assert found == {
        "loss": 2.5,
        "finite": 0.0,
        "clipped": 1.0,
        "grad_norm": math.inf,
        "grad_norms/blocks/wq": [1.0, -math.inf],
        "validation/loss": 2.0,
    }
