"""All figures together: each is there, in JSON, and they agree with one another."""

import json

from jaxlm.contract import plain
from jaxlm.scaling.accounting import flops_per_token
from jaxlm.scaling.explanation import explanation, formulas
from jaxlm.scaling.hardware import HARDWARE


def test_every_figure_is_there_and_they_agree(config_on):
    cfg = config_on("fsdp_tp", precision="bfloat16", remat="block")
    found = json.loads(json.dumps(plain(explanation(cfg, HARDWARE["v6e"], mfu=0.5)), allow_nan=False))
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1, "rules": "fsdp_tp", "devices": 8}
    counts = found["parameters"]
    assert counts["total"] == sum(counts[kind] for kind in ("embedding", "attention", "feed-forward", "norms", "head"))
    used = found["memory"]
    assert used["peak"] == sum(used["resident"].values()) + sum(used["phases"][used["peak_phase"]].values())
    assert used["fits"] is True
    assert found["communication_seconds"] == sum(row["seconds"] for row in found["collectives"])
    assert {row["operation"] for row in found["collectives"]} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert [bound["name"] for bound in found["bounds"]] == ["dp", "fsdp", "tp", "context"]
    assert found["time"]["step_seconds"] * 0.5 == found["time"]["compute_seconds_at_peak"]
    assert found["time"]["chinchilla_tokens_per_parameter"] == 20
    assert found["flops_per_token"]["model"] * cfg.tokens_per_step == found["time"]["step_flops"]


def test_the_numbers_of_a_formula_give_its_figure(config_on):
    for fields in ({}, {"n_kv_heads": 1, "ffn": "gelu"}, {"window": 17}):
        model = config_on(model=fields).model
        flops = flops_per_token(model)
        for part, text in formulas(model, flops).items():
            if "=" in text:
                numbers = text.split("=")[1].split(";")[0].replace("x", "*")
                assert eval(numbers) == getattr(flops, part) or abs(eval(numbers) / getattr(flops, part) - 1) < 1e-5
