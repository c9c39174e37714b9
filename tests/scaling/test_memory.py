"""The figure for the memory of a device against XLA's own, and that it moves as it should."""

import dataclasses
import math

import jax
import pytest

from jaxlm.parallel import make_mesh
from jaxlm.scaling.memory import memory
from jaxlm.train.state import abstract_state, rules

BOUND = 0.15
MANY_PARAMETERS = {"d_model": 256, "context_length": 16, "vocab_size": 8192}
MANY_LOGITS = {"n_layers": 2, "vocab_size": 8192}


def by_xla(compiled, cfg):
    """Bytes of one device: what goes in, what comes out and is no buffer of what went in, and what is needed between."""
    found = compiled(cfg).memory_analysis()
    return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def case(mesh, fast=False, **fields):
    return pytest.param(mesh, fields, marks=() if fast else pytest.mark.slow, id=f"{mesh}-{fields}")


@pytest.mark.parametrize(
    ("mesh", "fields"),
    [
        case("single", fast=True, remat="block"),
        case("fsdp_tp", fast=True),
        case("dp", remat="block"),
        case("fsdp", remat="dots"),
        case("tp", remat="block"),
        case("fsdp_tp", remat="block", precision="bfloat16"),
        case("context"),
        case("single", precision="bfloat16"),
        case("tp", precision="float16"),
        case("single", remat="dots", model={"d_ff": 512, "context_length": 512}, batch_size=8),
        case("single", remat="block", model=MANY_LOGITS),
        case("fsdp_tp", remat="block", model=MANY_LOGITS),
        case("single", model=MANY_PARAMETERS, batch_size=8),
        case("fsdp", model=MANY_PARAMETERS, batch_size=8),
        case("tp", model=MANY_PARAMETERS, batch_size=8, grad_accum=2),
    ],
)
def test_the_figure_is_within_15_percent_of_xlas_own(config_on, compiled, mesh, fields):
    cfg = config_on(mesh, **fields)
    assert memory(cfg, cpu=True).peak == pytest.approx(by_xla(compiled, cfg), rel=BOUND)


@pytest.mark.parametrize("mesh", ["single", "dp", "fsdp", "tp", "fsdp_tp"])
def test_what_stays_is_what_the_step_is_given(config_on, mesh):
    """The state and the batch to the byte, but for a few scalars and the alignment of buffers."""
    cfg = config_on(mesh)
    state = jax.tree.leaves(abstract_state(cfg, make_mesh(cfg.mesh)))
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in state)
    shards = math.prod(getattr(cfg.mesh, axis) for axis in rules(cfg).a_B)
    batch = 17 * cfg.tokens_per_step // shards
    assert sum(memory(cfg).resident.values()) == pytest.approx(held + batch, abs=64)


def test_policies_order_as_they_keep(config_on):
    none, dots, block = (memory(config_on(remat=remat)).peak for remat in ("none", "dots", "block"))
    assert none > dots > block
    offloaded = memory(config_on(remat="offload"))
    assert offloaded.host == 4 * 32 * 128 * 64 * 4  # four layers' inputs
    assert offloaded.peak < block
    assert memory(config_on(remat="offload"), cpu=True).host == 0.0  # there it is one memory


def test_bfloat16_halves_activations_where_it_is_not_widened(config_on):
    wide, narrow = memory(config_on()).peak, memory(config_on(precision="bfloat16")).peak
    assert 0.5 < narrow / wide < 0.75
    on_cpu = [memory(config_on(precision=precision), cpu=True).peak for precision in ("float32", "float16", "bfloat16")]
    assert 0.5 < on_cpu[1] / on_cpu[0] < 0.75
    assert on_cpu[2] == pytest.approx(on_cpu[0] if jax.__version_info__ < (0, 11) else on_cpu[1], rel=0.05)


def test_smaller_blocks_of_logits_need_less_and_layers_need_more(config_on):
    large = config_on(model=MANY_LOGITS, loss_chunk=2048, remat="block")
    small = dataclasses.replace(large, train=dataclasses.replace(large.train, loss_chunk=128))
    assert memory(large).phase == "loss"
    assert memory(small).peak < memory(large).peak
    deep = config_on(model={"n_layers": 8})
    assert memory(deep).peak > memory(config_on()).peak
    assert sum(memory(deep).phases[memory(deep).phase].values()) + sum(memory(deep).resident.values()) == memory(deep).peak
