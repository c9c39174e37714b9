"""A kernel under a mesh: for each device's heads, and in the ring over shards of the sequence."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config.schema import ConfigError, MeshConfig, ModelConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.model import Mask, Policy, attention_used
from jaxlm.model.attention import attend
from jaxlm.parallel import make_mesh, rules_of
from pallas_kernels import KeyRanges, attention_reference, causal
from tests.pallas_kernels.operands import as_on_a_tpu, operands


@pytest.mark.parametrize("context", [1, 2])
def test_under_a_mesh_a_kernel_gives_what_the_whole_gives(monkeypatch, context):
    as_on_a_tpu(monkeypatch)
    # The interpreter of kernels does not say over which axes its own numbers vary; the compiler of them does (below).
    real = jax.shard_map
    monkeypatch.setattr(jax, "shard_map", lambda *args, **options: real(*args, **{**options, "check_vma": False}))
    config = MeshConfig(data=1, fsdp=2, tensor=2, context=context, rules="fsdp_tp")
    cfg = ModelConfig(vocab_size=64, d_model=64, n_heads=4, n_kv_heads=2, context_length=32)
    mesh, rules, ranges = make_mesh(config), rules_of(config, cfg.kv_heads), causal(2, 32, window=11)
    q, k, v, d_out, _ = operands(4, T=32, S=32)

    def function(q, k, v, d_out, start, end):
        mask = Mask(start, KeyRanges(start, end))
        out, pull = jax.vjp(lambda *x: attend(*x, mask, cfg, rules).out_BTNH, q, k, v)
        return out, pull(d_out)

    given = ((q, "BTNH"), (k, "BSKH"), (v, "BSKH"), (d_out, "BTNH"), (ranges.start_BT, "BT"), (ranges.end_BT, "BT"))
    with jax.set_mesh(mesh):
        found = jax.jit(function)(*(jax.device_put(x, rules.activation(dims)) for x, dims in given))
    out, pull = jax.vjp(lambda *x: attention_reference(*x, ranges)[0], q, k, v)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, (out, pull(d_out)))


OF_TPU = ("TPU v5 lite", "tpu", "tpu", ("attention_forward", "attention_dq", "attention_dkv"))
OF_GPU = ("NVIDIA H200", "gpu", "cuda", ("mosaic_gpu_v2",) * 3)


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize(("kind", "platform", "lowered", "calls"), [OF_TPU, OF_GPU])
def test_under_a_mesh_a_kernel_is_compiled_for_each_device(kind, platform, lowered, calls, context):
    if platform == "gpu" and jax.__version_info__ < (0, 11):
        pytest.skip("the kernels for Hopper need jax 0.11")
    config = MeshConfig(data=1, fsdp=2, tensor=2, context=context, rules="fsdp_tp")
    cfg = ModelConfig(vocab_size=64, d_model=512, n_heads=4, n_kv_heads=2, context_length=512)
    rules = rules_of(config, cfg.kv_heads)
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1 if platform == "tpu" else None, platform=platform)
    mesh = make_mesh(config).abstract_mesh.update(abstract_device=device)

    def loss(q, k, v, start, end):
        return attend(q, k, v, Mask(start, KeyRanges(start, end)), cfg, rules).out_BTNH.astype("float32").sum()

    def given(shape, dims, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, rules.activation(dims)))

    operands = [given((2, 512, n, 128), dims, "bfloat16") for n, dims in ((4, "BTNH"), (2, "BSKH"), (2, "BSKH"))]
    ranges = [given((2, 512), "BT", "int32")] * 2
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*operands, *ranges).lower(lowering_platforms=(lowered,)).as_text()
    assert all(text.count(call) >= calls.count(call) for call in calls)


def test_a_kernel_that_there_is_none_of_is_refused_by_the_option_that_asks_for_it():
    with pytest.raises(InputError, match=r"--model.attention pallas: .* none for cpu; take auto"):
        attention_used(ModelConfig(attention="pallas"), Policy())
    assert attention_used(ModelConfig(), Policy()) == "xla, tiles in sequence"


def test_cudnn_is_refused_where_it_lacks_what_the_config_asks_for():
    with pytest.raises(ConfigError, match=r"attention.softcap"):
        ModelConfig(attention="cudnn", attention_softcap=3.0)
    with pytest.raises(ConfigError, match=r"mesh.context"):
        RunConfig(model=ModelConfig(attention="cudnn"), mesh=MeshConfig(context=2))
