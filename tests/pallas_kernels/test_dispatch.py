"""Which computation is chosen for which device, operands and wish; that a kernel gives what XLA gives."""

import functools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import KeyRanges, attention, attention_gradients, attention_path, causal, tuning
from pallas_kernels.dispatch import Target, chosen, target
from tests.pallas_kernels.operands import TPUS, as_on_a_tpu, made_for, operands, some_ranges

CPU, V5E = Target("cpu", "cpu"), Target("tpu", "TPU v5 lite")
H200, A100 = Target("gpu", "NVIDIA H200"), Target("gpu", "NVIDIA A100-SXM4-80GB")
OLD = tuple(int(x) for x in jax.__version__.split(".")[:2]) < (0, 11)


@pytest.mark.parametrize(
    ("kernel", "dtype", "width", "on", "expected"),
    [
        ("auto", "float32", 64, CPU, "xla"),
        ("auto", "bfloat16", 128, V5E, "tpu"),
        ("auto", "float32", 96, V5E, "tpu"),
        ("auto", "float16", 128, V5E, "xla"),
        ("auto", "bfloat16", 128, H200, "xla" if OLD else "hopper"),
        ("auto", "float16", 80, H200, "xla" if OLD else "hopper"),
        ("auto", "float32", 128, H200, "xla"),
        ("auto", "bfloat16", 512, H200, "xla"),
        ("auto", "bfloat16", 128, A100, "xla"),
        ("reference", "bfloat16", 128, V5E, "xla"),
        ("pallas", "bfloat16", 128, V5E, "tpu"),
        ("cudnn", "bfloat16", 128, A100, "cudnn"),
    ],
)
def test_the_kernel_is_chosen_where_there_is_one(kernel, dtype, width, on, expected):
    assert chosen(kernel, dtype, width, on=on) == expected
    xla = "xla, tiles in sequence" if on == CPU else "xla, rows at once"
    words = {"xla": xla, "cudnn": "cudnn, a mask of T x S"}.get(expected)
    words = words or f"pallas, {expected}, tiles {tuning.digest(expected)}"
    assert attention_path(kernel, dtype, width, on=on) == words


@pytest.mark.parametrize(
    ("dtype", "on", "why"),
    [
        ("bfloat16", CPU, "none for cpu"),
        ("bfloat16", A100, "Hopper GPUs .* found NVIDIA A100"),
        ("float16", V5E, "bfloat16 or float32, found float16"),
        ("float32", H200, "jax 0.11 or newer" if OLD else "bfloat16 or float16, found float32"),
    ],
)
def test_a_kernel_that_is_asked_for_and_is_none_is_an_error_that_says_why(dtype, on, why):
    with pytest.raises(ValueError, match=why):
        chosen("pallas", dtype, 128, on=on)


@pytest.mark.parametrize(
    ("dtype", "width", "on", "why"),
    [("bfloat16", 64, V5E, "NVIDIA"), ("float32", 64, H200, "found float32"), ("bfloat16", 60, H200, "8 divides, .* found 60")],
)
def test_cudnn_is_refused_with_why(dtype, width, on, why):
    with pytest.raises(ValueError, match=why):
        chosen("cudnn", dtype, width, on=on)


def test_by_cudnn_a_query_that_sees_nothing_gets_nothing_and_gradients_are_those_of_xla(monkeypatch):
    """cuDNN is not here: XLA's computation of the same function of jax stands in for it, which has its mean of all values."""
    q, k, v, d_out, d_lse = operands(3)
    ranges = some_ranges("random", 9)
    expected = both(ranges, q, k, v, d_out, d_lse, "reference")
    monkeypatch.setattr(sys.modules["pallas_kernels.attention"], "chosen", lambda *args, **options: "cudnn")
    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *args, implementation, **options: real(*args, **options))
    found = both(ranges, q, k, v, d_out, d_lse, "cudnn")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, expected)
    narrow = some_ranges("causal")._replace(end_BT=jnp.minimum(some_ranges("causal").end_BT, 50).at[:, 5].set(0))
    bad = [q.at[:, 5].set(jnp.nan), *(x.at[:, 50:].set(jnp.nan) for x in (k, v))]
    of_bad = both(narrow, *bad, d_out.at[:, 5].set(jnp.nan), d_lse.at[:, 5].set(jnp.nan), "cudnn")
    jax.tree.map(np.testing.assert_array_equal, of_bad, both(narrow, q, k, v, d_out, d_lse, "cudnn"))
    with pytest.raises(ValueError, match="no softcap, which cuDNN has not, found"):
        attention(q, k, v, ranges, softcap=2.0)
    with pytest.raises(ValueError, match="no gradients of parts"):
        attention_gradients(q, k, v, ranges, d_out, d_lse, d_out, d_lse)


def changed(name, change):
    """q, k, v and ranges that fit, but for one."""
    q, k, v, *_ = operands(0)
    given = {"q": q, "k": k, "v": v, "start": jnp.zeros((2, 40), jnp.int32), "end": jnp.full((2, 40), 56, jnp.int32)}
    given[name] = change(given[name])
    return given["q"], given["k"], given["v"], KeyRanges(given["start"], given["end"])


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("v", lambda x: x[:, :-1], r"expected k and v \[2, 56, 2, 16\] and ranges \[2, 40\] .* found"),
        ("k", lambda x: x[..., :-1], r"expected k and v \[2, 56, 2, 16\]"),
        ("end", lambda x: x[:, :2], r"ranges \[2, 40\]"),
        ("start", lambda x: jnp.tile(x, (1, 2)), r"ranges \[2, 40\]"),
        ("q", lambda x: x[0], r"expected q \[B, T, N, H\]"),
        ("q", lambda x: x[:, :, :3], "multiples of the 2"),
        ("v", lambda x: x.astype(jnp.bfloat16), "one floating dtype, found float32, float32, bfloat16"),
        ("end", lambda x: x.astype(jnp.float32), "integer ranges, found int32, float32"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, change, found):
    with pytest.raises(ValueError, match=found):
        attention(*changed(name, change))


def test_nothing_and_caps_that_are_none_are_refused():
    q, k, v, *_ = operands(0)
    none = causal(2, 0, 56)
    with pytest.raises(ValueError, match="at least one of everything"):
        attention(q[:, :0], k, v, none)
    for cap in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="softcap"):
            attention(q, k, v, some_ranges("causal"), softcap=cap)
    with pytest.raises(ValueError, match="known when traced"):
        jax.jit(lambda cap: attention(q, k, v, some_ranges("causal"), softcap=cap))(3.0)


def test_ranges_of_few_bits_hold_as_they_are():
    q, k, v, *_ = operands(0, S=300)
    wide = KeyRanges(jnp.zeros((2, 40), jnp.int32), jnp.full((2, 40), 100, jnp.int32))
    for ours, theirs in zip(
        attention(q, k, v, KeyRanges(*(x.astype(jnp.int8) for x in wide))), attention(q, k, v, wide), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_kernel_that_is_asked_for_is_compiled_for_its_device_only():
    q, k, v, *_ = operands(0)
    for kernel, refused in (("pallas", True), ("auto", False)):
        with made_for(TPUS[0]):
            traced = jax.jit(functools.partial(attention, kernel=kernel)).trace(q, k, v, some_ranges("causal"))
        assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
        if refused:
            with pytest.raises(Exception, match="platform"):
                traced.lower(lowering_platforms=("cpu",))
        else:
            traced.lower(lowering_platforms=("cpu",))


def test_an_unknown_wish_is_an_error():
    with pytest.raises(ValueError, match="auto, reference, pallas, cudnn, found 'fast'"):
        chosen("fast", "float32", 64)
    q, k, v, *_ = operands(0)
    with pytest.raises(ValueError, match="none for cpu"):
        attention(q, k, v, some_ranges("causal"), kernel="pallas")


@pytest.fixture
def on_a_tpu(monkeypatch):
    as_on_a_tpu(monkeypatch)


def both(ranges, q, k, v, d_out, d_lse, kernel):
    def function(q, k, v):
        found = pallas_kernels.attention(q, k, v, ranges, kernel=kernel)
        return (found.out_BTNH, jnp.where(found.lse_BTN > -1e29, found.lse_BTN, 0.0)), found

    (out, lse), pull, rest = jax.vjp(function, q, k, v, has_aux=True)
    return out, lse, rest.peak_BTN, rest.mean_BTN, pull((d_out, d_lse))


def test_attention_by_the_kernel_is_attention_by_xla(request):
    given = (some_ranges("random", 1), *operands(0))
    expected = jax.jit(functools.partial(both, kernel="reference"))(*given)
    request.getfixturevalue("on_a_tpu")
    found = jax.jit(functools.partial(both, kernel="auto"))(*given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, expected)


def test_one_query_over_a_cache_goes_by_the_kernel_for_that(request):
    q, k, v, *_ = operands(2, T=1, S=256)
    ranges = some_ranges("causal", T=1, S=256)._replace(end_BT=jnp.asarray([[200], [0]], jnp.int32))
    expected = attention(q, k, v, ranges, kernel="reference")
    request.getfixturevalue("on_a_tpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pallas_kernels.tpu, "forward", None)  # not called
        found = attention(q, k.at[:, 200:].set(jnp.nan), v.at[:, 200:].set(jnp.nan), ranges)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("path", ["tiles in sequence", "rows at once", "tpu"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_query_sees_and_a_query_that_sees_nothing_leak_into_no_result(request, monkeypatch, path, poison):
    q, k, v, d_out, d_lse = operands(7)
    ranges = causal(2, 40, 50)._replace(start_BT=jnp.full((2, 40), 2, jnp.int32))  # two keys before, six after
    # One that is reversed, and two that lie beside the keys: they see nothing, and stretch nothing.
    ends = ranges.end_BT.at[:, 5].set(0).at[:, 6].set(-3).at[:, 7].set(99)
    starts = ranges.start_BT.at[:, 6].set(-9).at[:, 7].set(60)
    # A gap: queries up to 20 see keys before 22, the rest from 26 on.
    early = jnp.arange(40)[None, :] <= 20
    ranges = ranges._replace(
        start_BT=jnp.where(early, starts, jnp.maximum(starts, 26)), end_BT=jnp.where(early, jnp.minimum(ends, 22), ends)
    )
    if path == "tpu":
        request.getfixturevalue("on_a_tpu")
    if path == "rows at once":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, cpu, default: default(*xs))
    expected = both(ranges, q, k, v, d_out, d_lse, "auto")
    bad = [x.at[:, 50:].set(poison).at[:, :2].set(poison).at[:, 22:26].set(poison) for x in (k, v)]
    found = both(ranges, q.at[:, 5:8].set(poison), *bad, d_out.at[:, 5:8].set(poison), d_lse.at[:, 5:8].set(poison), "auto")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_mesh_says_what_a_program_is_for_then_the_default_device_then_the_first(monkeypatch):
    cpu = jax.devices()[0]
    mesh = jax.make_mesh((1,), ("data",), devices=[cpu])
    assert target() == CPU
    with made_for(Target("tpu", "TPU v6 lite")):
        assert target() == Target("tpu", "TPU v6 lite")
        assert attention_path("auto", "bfloat16", 64) == f"pallas, tpu, tiles {tuning.digest('tpu')}"
    first = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "devices", lambda platform=None: [cpu if platform == "cpu" else first])
    assert target() == H200
    with jax.set_mesh(mesh):
        assert target() == CPU
    for device in (cpu, "cpu"):
        with jax.default_device(device):
            assert target() == CPU
