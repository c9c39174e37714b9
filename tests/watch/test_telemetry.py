"""Telemetry records and the line for a person."""

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import WatchConfig
from jaxlm.model import BackwardStats, BlockStats, Site
from jaxlm.watch import Progress, Telemetry, duration, leaf_norms, number, record_of, still_rows, total_norm


def telemetry(**changes):
    pair, none = jnp.array([1.0, 2.0]), jnp.zeros(2)
    stats = BlockStats(*(Site(pair, 3 * pair, none) for _ in range(3)), logit_max=4 * pair, entropy=0.1 * pair)
    fields = {
        "step": jnp.int32(7),
        "loss": jnp.float32(0.1),
        "loss_spread": jnp.float32(0.3),
        "z_loss": jnp.float32(4.0),
        "labels": jnp.float32(100),
        "content": jnp.uint32(3),
        "grad_norm": jnp.float32(3.0),
        "clipped": jnp.bool_(True),
        "param_norm": jnp.float32(5.0),
        "update_norm": jnp.float32(0.5),
        "lr": jnp.float32(1e-3),
        "loss_scale": jnp.float32(1.0),
        "finite": jnp.bool_(True),
        "skipped": jnp.int32(0),
        "leaf_grad_norms": {"blocks/wq": jnp.array([1.0, 2.0]), "embed": jnp.float32(2.0)},
        "leaf_param_norms": {"blocks/wq": jnp.array([3.0, 4.0]), "embed": jnp.float32(5.0)},
        "leaf_update_norms": {"blocks/wq": jnp.array([0.1, 0.2]), "embed": jnp.float32(0.3)},
        "embed_rows_still": jnp.float32(0.25),
        "similarity": jnp.float32(0.5),
        "activations": stats,
        "backward": BackwardStats(0.5 * pair, none),
    }
    return Telemetry(**{**fields, **changes})


def test_a_record_holds_the_float32_exactly_and_bits_per_byte():
    record = record_of(telemetry(), labels_bytes=250, positions=200)
    assert record["loss"] == float(np.float32(0.1))
    assert math.isclose(record["bits_per_byte"], float(np.float32(0.1)) * 100 / (math.log(2) * 250))
    assert np.float32(json.loads(json.dumps(record))["lr"]) == np.float32(1e-3)
    assert record["supervised"] == 0.5
    assert record["clipped"] is True
    assert record["grad_norms"] == {"blocks/wq": [1.0, 2.0], "embed": 2.0}
    assert record["update_norms"] == {"blocks/wq": [0.1, 0.2], "embed": 0.3}  # the shortest decimals of these float32
    assert np.float32(json.loads(json.dumps(record))["update_norms"]["embed"]) == np.float32(0.3)
    assert record["activations"]["mlp_max"] == [3.0, 6.0]
    assert record["activations"]["entropy"] == [0.1, 0.2]
    assert record["backward"] == {"residual_rms": [0.5, 1.0]}
    assert record["nonfinite_forward"] == {"residual": [0, 0], "attn": [0, 0], "mlp": [0, 0]}
    assert record_of(telemetry(), labels_bytes=0, positions=200)["bits_per_byte"] is None


def test_a_nan_is_named_with_its_layer_and_is_still_json():
    norms = {"blocks/wq": jnp.array([1.0, jnp.nan]), "embed": jnp.float32(jnp.inf)}
    record = record_of(telemetry(leaf_grad_norms=norms, loss=jnp.float32(jnp.nan)), labels_bytes=10, positions=200)
    assert record["nonfinite"] == "blocks/wq[1]"
    assert record["loss"] == "nan"
    assert json.loads(json.dumps(record, allow_nan=False))["grad_norms"]["embed"] == "inf"
    assert number(np.array([-np.inf, 1.0])) == ["-inf", 1.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, ""), ({"loss": jnp.float32(jnp.inf)}, "the loss"), ({"update_norm": jnp.float32(0)}, "the update")],
)
def test_a_skipped_step_says_what_was_not_finite(changes, named):
    assert record_of(telemetry(finite=jnp.bool_(not named), **changes), labels_bytes=10, positions=200)["nonfinite"] == named


def test_norms_are_by_layer_in_the_blocks_and_add_up():
    rng = np.random.default_rng(0)
    tree = {"blocks": {"wq": rng.standard_normal((3, 4, 5))}, "embed": rng.standard_normal((6, 2))}
    norms = leaf_norms(tree)
    np.testing.assert_allclose(norms["blocks/wq"], np.sqrt((tree["blocks"]["wq"] ** 2).sum((1, 2))), rtol=1e-6)
    whole = math.sqrt((tree["blocks"]["wq"] ** 2).sum() + (tree["embed"] ** 2).sum())
    np.testing.assert_allclose(total_norm(norms), whole, rtol=1e-6)


def test_rows_without_a_gradient_are_counted_among_those_of_the_vocabulary():
    gradient = np.zeros((8, 3), np.float32)  # five ids, three rows that pad
    gradient[[0, 2, 7], [1, 0, 2]] = [1e-30, -2.0, 1.0]
    gradient[7] = 0.0
    assert float(still_rows(jnp.asarray(gradient), 5)) == pytest.approx(3 / 5)


def test_the_line_fits_eighty_columns_and_is_printed_now_and_then():
    stream = io.StringIO()
    progress = Progress(steps=100_000, tokens_per_step=4096, watch=WatchConfig(print_every=10), stream=stream)
    record = record_of(telemetry(), labels_bytes=250, positions=200)
    with progress:
        progress.start(99_980)
        for step in range(99_981, 100_001):
            progress.step({**record, "step": step})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in lines), lines
    assert "loss 0.100" in lines[0]
    assert "tok/s" in lines[0]


def test_durations_in_words():
    assert [duration(s) for s in (0.4, 42, 187, 7500)] == ["0s", "42s", "3m07s", "2h05m"]
