"""The place of the first non-finite value, from counts, and from norms alone."""

import pytest

from jaxlm.watch.detect import Expected, Location, localise
from jaxlm.watch.detect.nonfinite import observe

LAYERS = 3


def record(*, forward=None, backward=None, grads=None, loss=1.0, **more):
    """A step of three layers; forward: part and first layer from which on everything is bad; backward: the highest bad one."""
    counts = {part: [0] * LAYERS for part in ("residual", "attn", "mlp")}
    order = [(part, layer) for layer in range(LAYERS) for part in ("residual", "attn", "mlp")]
    if forward is not None:
        for part, layer in order[order.index(forward) :]:
            counts[part][layer] = 5
        loss = "nan"
    bad = LAYERS if forward is not None else 0 if backward is None else backward + 1
    inputs = [7 if layer < bad else 0 for layer in range(LAYERS)]
    norms = {name: ["nan" if layer < bad else 1.0 for layer in range(LAYERS)] for name in ("blocks/wq", "blocks/w_down")}
    norms |= {"embed": "nan" if bad else 1.0, "final_norm": "nan" if forward else 1.0} | (grads or {})
    flat = str(norms)
    return {
        "step": 3, "loss": loss, "nonfinite_forward": counts, "nonfinite_backward": inputs, "grad_norms": norms,
        "grad_norm": "nan" if "nan" in flat or "inf" in flat else 2.0, "finite": "nan" not in flat, "loss_scale": 1.0, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("step", "where"),
    [
        (record(), None),
        (record(forward=("residual", 0)), Location("forward", None, "embedding")),
        (record(forward=("attn", 0)), Location("forward", 0, "attention")),
        (record(forward=("mlp", 1)), Location("forward", 1, "feed-forward")),
        (record(forward=("residual", 2)), Location("forward", 1, "sum of the block")),
        (record(loss="inf"), Location("forward", None, "head or loss")),
        (record(backward=1), Location("backward", 1, "block")),
        (record(backward=LAYERS - 1), Location("backward", LAYERS - 1, "block")),
        (record(backward=LAYERS - 1, grads={"final_norm": "inf"}), Location("backward", None, "final_norm")),
        (record(grads={"blocks/wq": [1.0, "inf", 1.0]}), Location("backward", 1, "blocks/wq")),
        (record(grads={"embed": "nan"}), Location("backward", None, "embed")),
        (record() | {"finite": False, "nonfinite": "the update"}, Location("update", None, "the update")),
        (
            record() | {"finite": False, "nonfinite": "the update", "param_norms": {"embed": 2.0, "blocks/wo": [1.0, "inf"]}},
            Location("update", 1, "the update of blocks/wo"),
        ),
    ],
)
def test_the_place(step, where):
    assert localise(step) == where
    alarms = observe(None, step, Expected())[1]
    assert [(alarm.layer, alarm.what) for alarm in alarms] == ([] if where is None else [(where.layer, where.what)])


def test_records_without_counts_are_judged_by_their_norms():
    old = {"step": 1, "loss": "nan", "grad_norm": "nan", "finite": False, "nonfinite": "blocks/wq[0]"}
    activations = {"residual_rms": [1.0, 1.0, "nan"], "attn_rms": [1.0, 1.0, "nan"], "mlp_rms": [1.0, "inf", "nan"]}
    assert localise(old | {"activations": activations}) == Location("forward", 1, "feed-forward")
    norms = {"blocks/wq": ["nan", "nan", 1.0], "blocks/wo": ["nan", "nan", 1.0], "embed": "nan", "final_norm": 1.0}
    assert localise(old | {"loss": 2.0, "grad_norms": norms}) == Location("backward", 1, "block")


def test_a_swallowed_infinity_is_seen():
    step = record()
    step["nonfinite_forward"]["mlp"][1] = 1
    assert localise(step) == Location("forward", 1, "feed-forward")


def test_gradients_of_a_scaled_loss_may_overflow():
    assert observe(None, record(backward=1), Expected(scaled=True))[1] == []
    assert observe(None, record(backward=1, loss_scale=1024.0), Expected())[1] == []
    assert len(observe(None, record(forward=("mlp", 1)), Expected(scaled=True))[1]) == 1
