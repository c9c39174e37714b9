"""Cross-entropy of a head without its logits, by XLA and by the kernels: against float64, and what is refused."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import linear_cross_entropy
from pallas_kernels.dispatch import chosen_for_head
from tests.pallas_kernels.operands import H200, TPUS, made_for

MODULE = importlib.import_module("pallas_kernels.linear_cross_entropy")
T, V, D = 139, 600, 64  # two blocks of threads on Hopper, three tiles of ids, neither full


@pytest.fixture(params=["xla", "tpu", "hopper"])
def path(request, monkeypatch):
    monkeypatch.setattr(MODULE, "chosen_for_head", lambda *args: request.param)
    monkeypatch.setattr(MODULE, "BLOCK", 50)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, default, tpu=None, cuda=None: (tpu or cuda or default)(*xs))
    if request.param == "tpu":
        from pallas_kernels.tpu import linear_cross_entropy as kernels

        monkeypatch.setattr(kernels, "_tiles", lambda *sizes: (32, 256))
        for name in ("logsumexp", "gradients"):
            monkeypatch.setattr(kernels, name, functools.partial(getattr(kernels, name), interpret=True))
    if request.param == "hopper":
        if jax.__version_info__ < (0, 11):
            pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11")
        request.getfixturevalue("deadlock_ends_the_process")
        kernels = importlib.import_module("pallas_kernels.hopper.logsumexp")
        monkeypatch.setattr(kernels, "logsumexp", functools.partial(kernels.logsumexp, interpret=True))
    return request.param


def given(seed, dtype, size=0.4):
    keys = jax.random.split(jax.random.key(seed), 5)
    x, head = jax.random.normal(keys[0], (T, D), dtype), size * jax.random.normal(keys[1], (V, D), dtype)
    labels = jax.random.randint(keys[2], (T,), 0, 500)
    return x, head, labels, *(jax.random.normal(key, (T,)) for key in keys[3:])


def exact(x, head, labels, d_nll, d_lse, vocab, softcap):
    """nll, lse, and the gradients by x and head through both, float64, from all logits."""
    x, head, labels, d_nll, d_lse = (np.asarray(a, np.float64) for a in (x, head, labels, d_nll, d_lse))
    logits = x @ head.T
    slope = np.ones_like(logits)
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
        slope = 1.0 - np.square(logits / softcap)
    logits[:, vocab:] = -np.inf
    peak = logits.max(1)
    lse = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
    is_label = np.arange(V) == labels[:, None]
    d = np.exp(logits - lse[:, None]) * (d_nll + d_lse)[:, None] - is_label * d_nll[:, None]
    d *= slope
    d[:, vocab:] = 0.0
    return lse - (np.where(is_label, logits, 0.0)).sum(1), lse, d @ head, d.T @ x


def both(path, x, head, labels, d_nll, d_lse, **options):
    @jax.jit
    def run(x, head, labels, d_nll, d_lse):
        found, pull = jax.vjp(lambda x, head: linear_cross_entropy(x, head, labels, **options), x, head)
        return *found, *pull((d_nll, d_lse))

    return jax.block_until_ready(run(x, head, labels, d_nll, d_lse))


@pytest.mark.parametrize(("vocab", "softcap"), [(V, 0.0), (530, 3.0), (512, 0.0), (500, 3.0)])
def test_values_and_gradients_are_those_of_float64(path, vocab, softcap):
    arrays = given(vocab, jnp.bfloat16 if path == "hopper" else jnp.float32)
    found = both(path, *arrays, vocab=vocab, softcap=softcap)
    wanted = exact(*arrays, vocab, softcap)
    assert [x.dtype for x in found] == [jnp.float32, jnp.float32, arrays[0].dtype, arrays[0].dtype]
    for ours, theirs, tolerance in zip(found, wanted, (1e-5, 1e-5, 2**-7, 2**-7), strict=True):
        tolerance = tolerance if path == "hopper" else 2e-6
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_bfloat16_is_as_near_as_logits_that_are_stored(path):
    arrays, none = given(5, jnp.bfloat16), jnp.zeros(T)
    x, head, labels, d_nll, _ = arrays

    def stored(x, head):
        logits = jnp.einsum("TD,VD->TV", x, head, preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]

    plain = jax.jit(lambda x, head: jax.vjp(stored, x, head)[1](d_nll))(x, head)
    found = both(path, x, head, labels, d_nll, none)[2:]
    for ours, theirs, unfused in zip(found, exact(x, head, labels, d_nll, none, V, 0.0)[2:], plain, strict=True):
        error, allowed = (np.abs(np.asarray(a, np.float64) - theirs).max() for a in (ours, unfused))
        assert error <= 2 * allowed


def test_large_logits_neither_overflow_nor_lose_the_label(path):
    arrays = given(6, jnp.bfloat16 if path == "hopper" else jnp.float32, size=60.0)
    found = both(path, *arrays)
    wanted = exact(*arrays, V, 0.0)
    assert np.abs(wanted[1]).max() > 1000
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=2**-7 * np.abs(theirs).max())


def test_a_label_that_is_no_id_makes_its_likelihood_nan_and_no_gradient(path):
    x, head, labels, d_nll, _ = given(7, jnp.bfloat16 if path == "hopper" else jnp.float32)
    labels = labels.at[3].set(-100).at[70].set(520)
    nll, lse, d_x, d_head = both(path, x, head, labels, d_nll, jnp.zeros(T), vocab=510)
    assert np.flatnonzero(np.isnan(nll)).tolist() == [3, 70]
    assert all(np.isfinite(np.asarray(a, np.float32)).all() for a in (lse, d_x, d_head))
    assert not np.asarray(d_x, np.float32)[[3, 70]].any()
    assert not np.asarray(d_head, np.float32)[510:].any()


def test_two_runs_give_equal_bits(path):
    arrays = given(8, jnp.bfloat16)
    for first, second in zip(both(path, *arrays), both(path, *arrays), strict=True):
        np.testing.assert_array_equal(first, second)


def test_no_logits_of_all_positions_are_held():
    x, head, labels, *_ = given(9, jnp.float32)
    long = jnp.tile(x, (40, 1)), head, jnp.tile(labels, 40)
    text = jax.jit(jax.grad(lambda *a: linear_cross_entropy(*a)[0].sum(), (0, 1))).lower(*long).compile().as_text()
    assert f"{len(long[0])},{V}]" not in text


V5E = TPUS[0]


def test_where_there_is_a_kernel_it_is_chosen_and_where_there_is_none_it_says_why():
    assert chosen_for_head("auto", "float32", 96, on=V5E) == "tpu"
    assert chosen_for_head("auto", "float32", 96, on=H200) == "xla"
    assert chosen_for_head("reference", "bfloat16", 64, on=H200) == "xla"
    new = jax.__version_info__ >= (0, 11)
    assert chosen_for_head("auto", "bfloat16", 64, on=H200) == ("hopper" if new else "xla")
    with pytest.raises(ValueError, match="64 divides, found 96" if new else "jax 0.11"):
        chosen_for_head("pallas", "bfloat16", 96, on=H200)
    with pytest.raises(ValueError, match="none for cpu"):
        linear_cross_entropy(*given(0, jnp.float32)[:3], kernel="pallas")
    with pytest.raises(ValueError, match="found 'cudnn'"):
        linear_cross_entropy(*given(0, jnp.float32)[:3], kernel="cudnn")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x, head, labels: (x, head[:, :-1], labels), r"\[139, 64\], \[600, 63\]"),
        (lambda x, head, labels: (x[:0], head, labels[:0]), r"T at least 1"),
        (lambda x, head, labels: (x, head.astype(jnp.bfloat16), labels), "float32, bfloat16 and int32"),
        (lambda x, head, labels: (x, head, labels.astype(jnp.float32)), "integer labels"),
    ],
)
def test_what_does_not_fit_is_refused(change, found):
    with pytest.raises(ValueError, match=found):
        linear_cross_entropy(*change(*given(0, jnp.float32)[:3]))
    with pytest.raises(ValueError, match="1 to 600 ids, found 601"):
        linear_cross_entropy(*given(0, jnp.float32)[:3], vocab=601)


@pytest.mark.parametrize(
    ("on", "platform", "names"),
    [(H200, "cuda", ["mosaic_gpu"]), *[(on, "tpu", ["head_logsumexp", "head_dx", "head_dw"]) for on in TPUS]],
)
def test_it_lowers(on, platform, names):
    if on == H200 and jax.__version_info__ < (0, 11):
        pytest.skip("Mosaic GPU kernels need jax 0.11")
    x, head = (jax.ShapeDtypeStruct((size, 768), jnp.bfloat16) for size in (4001, 50257))
    with made_for(on):
        gradient = jax.jit(jax.value_and_grad(lambda x, head, labels: linear_cross_entropy(x, head, labels)[0].sum(), (0, 1)))
        text = gradient.trace(x, head, jax.ShapeDtypeStruct((4001,), jnp.int32)).lower(lowering_platforms=(platform,)).as_text()
    for name in names:
        assert name in text


def test_a_kernel_that_is_asked_for_is_compiled_for_its_device_only():
    x, head, labels, *_ = given(0, jnp.bfloat16)
    for kernel, refused in (("pallas", True), ("auto", False)):
        with made_for(V5E):
            gradient = jax.grad(lambda x, kernel=kernel: linear_cross_entropy(x, head, labels, kernel=kernel)[0].sum())
            traced = jax.jit(gradient).trace(x)
        assert "head_dx" in traced.lower(lowering_platforms=("tpu",)).as_text()
        if refused:
            with pytest.raises(Exception, match="platform"):
                traced.lower(lowering_platforms=("cpu",))
        else:
            traced.lower(lowering_platforms=("cpu",))
