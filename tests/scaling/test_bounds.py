"""Communication against compute: the bounds are where the two times meet."""

import dataclasses

import pytest

from jaxlm.config.schema import MeshConfig, ModelConfig, RunConfig, TrainConfig
from jaxlm.scaling.accounting import parameters
from jaxlm.scaling.bounds import bounds, ridge
from jaxlm.scaling.hardware import HARDWARE

V5P = HARDWARE["v5p"]
MODEL = ModelConfig(vocab_size=32000, d_model=4096, n_layers=4, n_heads=32, n_kv_heads=8, d_ff=16384, context_length=4096)


def of(name, mesh=None, hardware=V5P, **train):
    cfg = RunConfig(
        model=MODEL,
        train=TrainConfig(**{"batch_size": 1024, "precision": "bfloat16", **train}),
        mesh=mesh or MeshConfig(fsdp=16, tensor=4, rules="fsdp_tp"),
    )
    return next(bound for bound in bounds(cfg, hardware) if bound.name == name)


def test_fsdp_needs_as_many_tokens_as_flops_to_a_byte():
    bound = of("fsdp")
    assert bound.least == 459e12 / 200e9  # C / W: 2 b C / 2 W with two bytes a number
    tokens, weights = bound.least, 1e8
    assert 2 * weights * tokens / V5P.bf16_flops == pytest.approx(2 * weights / 200e9)  # a gather, a forward pass
    assert bound.here == 1024 * 4096 / 16
    assert bound.largest == min(int(1024 * 4096 / bound.least), 1024)
    assert bound.fits


def test_dp_behind_fsdp_sends_a_shard_of_the_gradient():
    alone, behind = of("dp", MeshConfig(data=16, rules="dp")), of("dp", MeshConfig(data=2, fsdp=8, rules="fsdp"))
    assert behind.least == alone.least / 8


def test_tp_is_bound_by_the_width_and_not_by_the_batch():
    bound = of("tp")
    assert bound.least is None
    assert of("tp", batch_size=2048).largest == bound.largest
    counts = parameters(MODEL)
    layer = (counts["attention"] + counts["feed-forward"]) / MODEL.n_layers
    for degree, waits in ((bound.largest, False), (bound.largest + 1, True)):
        sent = 2 * 2 * 2 * 4096 * (degree - 1) / degree / 200e9  # a token: two all-reduces of D numbers of two bytes
        computed = 2 * layer / degree / V5P.bf16_flops
        assert (sent > computed) is waits


def test_the_ring_needs_positions_for_each_key_head():
    bound = of("context", MeshConfig(context=4, rules="dp"))
    assert bound.unit == "positions"
    assert bound.here == 1024
    s = 2 * 8 * V5P.bf16_flops / (32 * 200e9)
    assert bound.least == pytest.approx(s, abs=1)
    assert 2 * 2 * s * 8 * 128 / 200e9 == pytest.approx(2 * s * s * 32 * 128 / V5P.bf16_flops)  # half of 4 s^2 N H


def test_a_degree_that_is_too_large_waits_and_none_at_all_does_not():
    h100 = HARDWARE["h100"]
    far = MeshConfig(data=16, tensor=8, rules="tp")  # one replica a node: the gradient leaves by one adapter
    assert of("dp", far, h100, batch_size=64).bandwidth == 50e9
    assert not of("dp", far, h100, batch_size=64).fits
    assert of("dp", far, h100, batch_size=128).fits
    assert of("context", far, h100, batch_size=64).fits
    assert of("dp", MeshConfig(data=16, rules="dp"), h100).bandwidth == 8 * 50e9


def test_slower_links_need_more_tokens():
    slow = dataclasses.replace(V5P, link=V5P.link / 2)
    assert of("fsdp", hardware=slow).least == 2 * of("fsdp").least
    assert of("tp", hardware=slow).largest <= of("tp").largest


def test_the_ridge_of_a_device():
    assert ridge(HARDWARE["h100"], "bfloat16") == pytest.approx(295, rel=0.01)
