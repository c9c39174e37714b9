"""Time from FLOPs, peak and share; tokens per parameter."""

import pytest

from jaxlm.contract import InputError
from jaxlm.scaling.accounting import flops_per_token, parameters
from jaxlm.scaling.estimate import estimate
from jaxlm.scaling.hardware import HARDWARE


def test_a_step_takes_its_flops_over_what_the_devices_reach(config_on):
    cfg = config_on("dp", precision="bfloat16", steps=1000)
    found = estimate(cfg, HARDWARE["h100"], mfu=0.5)
    tokens = 32 * 128
    assert found.step_flops == flops_per_token(cfg.model).model * tokens
    assert found.step_seconds == pytest.approx(found.step_flops / (8 * 989.4e12 * 0.5))
    assert found.tokens_per_second == pytest.approx(tokens / found.step_seconds)
    assert found.run_seconds == pytest.approx(1000 * found.step_seconds)
    assert found.run_flops == pytest.approx(1000 * found.step_flops)
    assert found.tokens == 1000 * tokens
    assert found.tokens_per_parameter == 1000 * tokens / sum(parameters(cfg.model).values())


def test_what_is_computed_again_does_not_count_as_use(config_on):
    h100 = HARDWARE["h100"]
    assert estimate(config_on(remat="block"), h100) == estimate(config_on(), h100)
    assert estimate(config_on(), h100).step_seconds == pytest.approx(2 * estimate(config_on(), h100, mfu=0.8).step_seconds)
    assert estimate(config_on(), h100).step_seconds > 10 * estimate(config_on(precision="bfloat16"), h100).step_seconds


@pytest.mark.parametrize("mfu", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(config_on, mfu):
    with pytest.raises(InputError, match="--mfu: expected a share above 0, at most 1"):
        estimate(config_on(), HARDWARE["h100"], mfu=mfu)
