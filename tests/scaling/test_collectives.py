"""Bytes that travel, against those in the compiled step, and against sums made by hand."""

import math
import re

import pytest

from jaxlm.config.schema import MeshConfig
from jaxlm.scaling.collectives import Collective, bandwidth_of, collectives, table
from jaxlm.scaling.hardware import HARDWARE

UNROLLED = {"n_layers": 2, "context_length": 32, "scan_layers": False}
STREAM = 16 * 32 * 64  # numbers of an activation of the residual stream, over all devices
LEAST = 2000  # bytes; below are statistics and gains of norms


def in_the_program(text):
    """(operation, bytes of its result) of every collective of a compiled program in float32 that is not small."""
    found = []
    operations = "all-gather|all-reduce|reduce-scatter|collective-permute"
    for kinds, operation in re.findall(rf"= (\(.*?\)|\S+) ({operations})(?:-start)?\(", text):
        shapes = re.findall(r"f32\[([\d,]*)\]", kinds)
        size = sum(4 * math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
        found += [(operation, size)] * (size > LEAST)
    return found


def of(cfg, operation, axis):
    """count * payload over the collectives of one operation over a mesh axis."""
    return sum(c.count * c.payload for c in collectives(cfg) if c.operation == operation and axis in c.axes)


def test_what_tensor_shards_add_is_what_the_compiled_step_adds(config_on, compiled):
    cfg = config_on("tp", model=UNROLLED, batch_size=16)
    here = 4 * STREAM // 2  # two replicas
    sizes = [size for operation, size in in_the_program(compiled(cfg).as_text()) if operation == "all-reduce"]
    whole = [size for size in sizes if here <= size < here + LEAST]  # some carry statistics with them
    # Two sums forward and two backward in each of two layers, the rows of the embedding, the gradient of the last activations.
    assert len(whole) == 2 * 4 + 2
    assert of(cfg, "all-reduce", "tensor") == len(whole) * here


@pytest.mark.slow
def test_what_fsdp_gathers_is_what_the_compiled_step_gathers(config_on, compiled):
    cfg = config_on("fsdp", model=UNROLLED, batch_size=16)
    gathered = sum(size for operation, size in in_the_program(compiled(cfg).as_text()) if operation == "all-gather")
    norms = 4 * 64 * (2 * 2 * 2 + 1)
    assert of(cfg, "all-gather", "fsdp") - norms == gathered


@pytest.mark.slow
def test_what_replicas_add_is_what_the_compiled_step_adds(config_on, compiled):
    cfg = config_on("dp", model=UNROLLED, batch_size=16)
    added = sum(size for operation, size in in_the_program(compiled(cfg).as_text()) if operation == "all-reduce")
    alike = 4 * 64  # the sum of the last activations' directions, a statistic that travels with the gradients
    assert of(cfg, "all-reduce", "data") == pytest.approx(added - alike, abs=100)


def test_one_device_sends_nothing(config_on):
    assert collectives(config_on()) == []


def test_a_ring_sends_n_minus_1_parts_and_an_all_reduce_does_so_twice():
    def sent(operation):
        return Collective("", operation, ("data",), 4, 100.0, 3).sent

    assert sent("all-gather") == sent("reduce-scatter") == 3 * 75
    assert sent("all-reduce") == 3 * 150
    assert sent("permute") == 3 * 100


def test_keys_and_values_go_round_and_their_gradients_go_home(config_on):
    for remat, rounds in (("none", 2), ("dots", 3), ("block", 3)):
        cfg = config_on("context", model=UNROLLED, batch_size=16, remat=remat)
        pair = 2 * 4 * STREAM // 8
        assert of(cfg, "permute", "context") == 2 * pair * (rounds * 3 + 4)
    grouped = config_on("context", model={**UNROLLED, "n_kv_heads": 1}, batch_size=16)
    assert (
        of(grouped, "permute", "context") == of(config_on("context", model=UNROLLED, batch_size=16), "permute", "context") / 4
    )


def test_a_block_computed_again_adds_behind_attention_again(config_on):
    none, block = (of(config_on("tp", remat=remat), "all-reduce", "tensor") for remat in ("none", "block"))
    assert block - none == 4 * 4 * 32 * 128 * 64 // 2  # once in each of four layers


def test_bfloat16_halves_what_weights_and_activations_send(config_on):
    wide, narrow = config_on("fsdp"), config_on("fsdp", precision="bfloat16")
    assert of(narrow, "all-gather", "fsdp") == pytest.approx(of(wide, "all-gather", "fsdp") / 2, rel=0.01)
    assert of(config_on("fsdp", grad_accum=4), "all-gather", "fsdp") == 4 * of(wide, "all-gather", "fsdp")


def test_an_axis_beyond_the_domain_is_as_fast_as_what_leaves_it():
    h100 = HARDWARE["h100"]
    mesh = MeshConfig(data=4, fsdp=8, tensor=4, rules="fsdp_tp")
    assert bandwidth_of(("tensor",), mesh, h100) == 450e9
    assert bandwidth_of(("fsdp",), mesh, h100) == 2 * 50e9  # two of eight are in one node
    assert bandwidth_of(("data",), mesh, h100) == 50e9
    assert bandwidth_of(("tensor",), mesh, HARDWARE["v5p"]) == 200e9


def test_a_row_of_the_table_has_its_time(config_on):
    cfg = config_on("dp")
    (row,) = table(collectives(cfg), cfg.mesh, HARDWARE["a100"])
    assert row["seconds"] == row["sent"] / 300e9
    assert (row["operation"], row["devices"], row["count"]) == ("all-reduce", 8, 1)
