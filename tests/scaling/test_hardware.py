"""The table of hardware: what is asked of it, and that its figures hang together."""

import pytest

from jaxlm.contract import InputError
from jaxlm.scaling.hardware import HARDWARE, hardware_of


def test_a_kind_is_found_by_name_and_an_unknown_one_names_those_there_are():
    assert hardware_of("h200").memory == 141e9
    with pytest.raises(InputError, match=r"--kind: expected one of a100, h100, .*v5p.*cpu, found 'h300'"):
        hardware_of("h300")


@pytest.mark.parametrize("kind", HARDWARE)
def test_figures_are_in_flops_and_bytes_per_second(kind):
    found = HARDWARE[kind]
    assert found.name == kind
    assert 1e11 <= found.fp32_flops <= found.bf16_flops < 1e16
    assert 1e9 < found.memory < 1e12
    assert found.egress < found.link < found.bandwidth
    assert found.flops("float32") == found.fp32_flops
    assert found.flops("bfloat16") == found.flops("float16") == found.bf16_flops


def test_one_axis_has_the_links_of_one_dimension_and_leaving_the_domain_costs():
    v5p, h100 = HARDWARE["v5p"], HARDWARE["h100"]
    assert v5p.axis_bandwidth() == 200e9  # two links of 100 GB/s, of the six that a chip has
    assert h100.axis_bandwidth() == 450e9
    assert h100.axis_bandwidth(1, leaves=True) == 50e9  # one device of a node: its own adapter
    assert h100.axis_bandwidth(8, leaves=True) == 400e9  # all eight share their adapters
