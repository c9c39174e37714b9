"""The loss over the head in blocks: against NumPy float64, against logits that exist, on meshes, and in the compiled text."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from jaxlm.config.schema import MeshConfig, ModelConfig
from jaxlm.model import POLICIES, Params, block_shape, head_loss, head_nll, loss_sums, project, token_nll
from jaxlm.parallel import PRESETS, make_mesh

B, T, D = 8, 6, 16
CFG = ModelConfig(d_model=D, n_layers=1, n_heads=2, context_length=T, vocab_size=41, vocab_multiple=16)
CAPPED = replace(CFG, logit_softcap=1.5)
V = CFG.padded_vocab


def params_of(head, *, tied=True):
    """Parameters of which only the head is there; an embedding that must not be read where it is not tied."""
    return Params(head if tied else jnp.full_like(head, jnp.nan), None, None, None if tied else head)


def drawn(seed=0, dtype="float32"):
    """Head [V, D], activations [B, T, D], labels, mask with one row that has no label; labels out of range where masked."""
    rng = np.random.default_rng(seed)
    head, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((V, D), (B, T, D)))
    mask = rng.random((B, T)) < 0.7
    mask[1] = False
    labels = np.where(mask, rng.integers(0, CFG.vocab_size, (B, T)), rng.integers(-100, 2 * V, (B, T))).astype(np.int32)
    return jnp.asarray(head), jnp.asarray(x, dtype), labels, mask


def expected_of(head, x, labels, mask, cfg, z_loss=0.0, scale=1.0):
    """nll [B, T], objective, gradients in x and in the head: float64, one position at a time."""
    head, x = (np.asarray(a, np.float64) for a in (head, x))
    nll, d_x, d_head, total = np.zeros((B, T)), np.zeros_like(x), np.zeros_like(head), 0.0
    for at in np.argwhere(mask):
        b, t = at
        raw = head[: cfg.vocab_size] @ x[b, t]
        logits = cfg.logit_softcap * np.tanh(raw / cfg.logit_softcap) if cfg.logit_softcap else raw
        lse = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        nll[b, t] = lse - logits[labels[b, t]]
        total += nll[b, t] + z_loss * lse**2
        d = np.exp(logits - lse) * (1 + 2 * z_loss * lse)
        d[labels[b, t]] -= 1
        if cfg.logit_softcap:
            d *= np.cosh(raw / cfg.logit_softcap) ** -2.0
        d_x[b, t] = scale * d @ head[: cfg.vocab_size]
        d_head[: cfg.vocab_size] += scale * np.outer(d, x[b, t])
    return nll, scale * total, d_x, d_head


@functools.partial(jax.jit, static_argnames=("cfg", "precision", "preset", "tied", "chunk", "z_loss"))
def blockwise(head, x, labels, mask, scale, *, cfg, precision="float32", preset="single", tied=True, chunk=0, z_loss=0.0):
    """Objective, sums, gradients in the head and in x; and the losses of the supervised positions by `head_nll`."""
    options = {"policy": POLICIES[precision], "rules": PRESETS[preset], "chunk": chunk}

    def objective(head, x):
        return head_loss(params_of(head, tied=tied), x, labels, mask, cfg, z_loss=z_loss, scale=scale, **options)

    (value, sums), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(head, x)
    nll = head_nll(params_of(head, tied=tied), x, labels, cfg, **options)
    return value, sums, *grads, jnp.where(mask, nll, 0.0)


@functools.partial(jax.jit, static_argnames=("cfg", "z_loss"))
def from_logits(head, x, labels, mask, scale, *, cfg, z_loss=0.0):
    """The same from logits of the whole batch."""

    def objective(head, x):
        logits = project(params_of(head), x, cfg, policy=POLICIES["float32"], rules=PRESETS["single"])
        sums = loss_sums(logits, labels, mask)
        return (sums.nll + z_loss * sums.z) * scale, (sums, jnp.where(mask, token_nll(logits, labels)[0], 0.0))

    (value, (sums, nll)), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(head, x)
    return value, sums, *grads, nll


def assert_close(found, expected, *, within, err_msg=""):
    """Within a share of the largest element: a softmax minus its label has elements near 0."""
    expected = np.asarray(expected, np.float64)
    limit = within * max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=limit, err_msg=err_msg)


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "tied", "chunk", "z_loss"),
    [
        (CFG, True, 0, 0.0),
        (CFG, False, 7, 1e-2),
        (CAPPED, True, 5, 1e-2),
        (replace(CAPPED, vocab_size=48), False, 48, 0.0),
    ],
)
def test_loss_and_gradients_equal_float64(cfg, tied, chunk, z_loss):
    head, x, labels, mask = drawn()
    with jax.numpy_dtype_promotion("strict"):
        found = blockwise(head, x, labels, mask, jnp.float32(0.25), cfg=cfg, tied=tied, chunk=chunk, z_loss=z_loss)
    value, sums, d_head, d_x, nll = found
    expected_nll, objective, expected_x, expected_head = expected_of(head, x, labels, mask, cfg, z_loss, 0.25)
    np.testing.assert_allclose(value, objective, rtol=1e-6)
    np.testing.assert_allclose(sums.nll, expected_nll.sum(), rtol=1e-6)
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-5, atol=1e-6)
    assert float(sums.count) == mask.sum()
    assert_close(d_x, expected_x, within=2e-6)
    assert_close(d_head, expected_head, within=2e-6)
    assert {a.dtype.name for a in jax.tree.leaves(found)} == {"float32"}


@pytest.mark.parametrize("chunk", [1, 5, 16, 47, 48, 1000])
def test_no_chunk_changes_what_whole_logits_give(chunk):
    args = (*drawn(1), jnp.float32(1.0))
    expected = from_logits(*args, cfg=CAPPED, z_loss=1e-2)
    found = blockwise(*args, cfg=CAPPED, z_loss=1e-2, chunk=chunk)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, within=1e-6)


@given(positions=st.integers(1, 100_000), chunk=st.integers(0, 3000), width=st.sampled_from([16, 512, 2048]))
def test_blocks_hold_every_position_and_less_than_one_a_block_that_is_none(positions, chunk, width):
    blocks, size = block_shape(positions, replace(CFG, d_model=width), chunk)
    assert 0 <= blocks * size - positions < blocks
    assert size <= (chunk or max(512, width))
    assert blocks == -(-positions // (chunk or max(512, width)))


def test_an_unsupervised_position_adds_exactly_nothing():
    head, x, labels, mask = drawn(2)
    call = functools.partial(blockwise, cfg=CAPPED, chunk=7, z_loss=1e-2)
    first = call(head, x, labels, mask, jnp.float32(1.0))
    assert (np.asarray(first[3])[~mask] == 0.0).all()
    assert (np.asarray(first[3])[mask] != 0.0).any(axis=-1).all()
    other = jnp.where(mask[..., None], x, 50.0 * x[::-1])
    moved = call(head, other, np.where(mask, labels, 0), mask, jnp.float32(1.0))
    jax.tree.map(np.testing.assert_array_equal, first, moved)
    none = call(head, x, labels, np.zeros_like(mask), jnp.float32(1.0))
    assert all((np.asarray(leaf) == 0.0).all() for leaf in jax.tree.leaves(none))


@pytest.mark.parametrize("preset", ["single", "tp"])
@pytest.mark.parametrize("label", [-1, -100, CFG.vocab_size, V - 1, V, 5000])
def test_a_supervised_label_that_is_none_has_no_plausible_loss(label, preset):
    head, x, labels, mask = drawn()
    at = tuple(np.argwhere(mask)[3])
    labels = labels.copy()
    labels[at] = label
    rules = PRESETS[preset]
    mesh = make_mesh(MeshConfig(tensor=2, rules="tp") if preset == "tp" else MeshConfig())
    with jax.set_mesh(mesh):
        laid = (rules.weight("VD"), rules.activation("BTD"), rules.activation("BT"), rules.activation("BT"))
        args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((head, x, labels, mask), laid, strict=True)]
        nll = head_nll(params_of(args[0]), *args[1:3], CFG, rules=rules)
        _, sums = head_loss(params_of(args[0]), *args[1:], CFG, rules=rules)
    assert np.isnan(np.asarray(nll)[at])
    assert np.isnan(float(sums.nll))
    assert np.isfinite(np.asarray(nll)[mask]).sum() == mask.sum() - 1
    logits = jnp.einsum("BTD,VD->BTV", x, head)
    assert np.isnan(np.asarray(token_nll(logits, jnp.asarray(labels))[0])[at]) == (not 0 <= label < V)


def test_logits_in_the_tens_of_thousands_stay_finite():
    head, x, labels, mask = drawn(3)
    value, sums, d_head, d_x, _ = blockwise(head, 1e4 * x, labels, mask, jnp.float32(1.0), cfg=CFG, chunk=7)
    nll, objective, expected_x, _ = expected_of(head, 1e4 * x, labels, mask, CFG)
    np.testing.assert_allclose(value, objective, rtol=1e-5)
    np.testing.assert_allclose(sums.nll, nll.sum(), rtol=1e-5)
    assert_close(d_x, expected_x, within=1e-5)
    assert np.isfinite(d_head).all()


def test_the_scale_has_its_gradient_and_the_sums_are_constants():
    head, x, labels, mask = drawn()

    def called(scale, x):
        return head_loss(params_of(head), x, labels, mask, CFG, scale=3.0 * scale, z_loss=1e-2)

    value, slope = jax.value_and_grad(lambda scale: 5.0 * called(scale, x)[0])(jnp.float32(0.5))
    np.testing.assert_allclose(slope, value / 0.5, rtol=1e-6)
    once, five = (jax.grad(lambda x, by=by: by * called(jnp.float32(0.5), x)[0])(x) for by in (1.0, 5.0))
    np.testing.assert_allclose(five, 5.0 * once, rtol=1e-6)
    assert (np.asarray(jax.grad(lambda x: called(jnp.float32(0.5), x)[1].nll)(x)) == 0.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_BT": np.zeros((B, T + 1), np.int32)}, "labels: expected shape"),
        ({"loss_mask_BT": np.ones((T, B), bool)}, "loss_mask: expected shape"),
        ({"x_BTD": np.zeros((B, T, D + 1), np.float32)}, "x: expected shape"),
        ({"params": params_of(jnp.zeros((41, D)))}, "head: expected shape"),
        ({"chunk": -1}, "chunk: expected a number of positions, or 0 for a derived one, found -1"),
        ({"chunk": 2.5}, "chunk: expected a number of positions, or 0 for a derived one, found 2.5"),
        ({"labels_BT": np.zeros((B, T), np.float32)}, "labels: expected at least one integer id, found float32"),
        ({"loss_mask_BT": np.full((B, T), 0.5)}, "loss_mask: expected bool, .* found float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    head, x, labels, mask = drawn()
    given = {"params": params_of(head), "x_BTD": x, "labels_BT": labels, "loss_mask_BT": mask, "cfg": CFG} | change
    with pytest.raises(ValueError, match=message):
        head_loss(**given)
    if "loss_mask_BT" not in change:
        with pytest.raises(ValueError, match=message):
            head_nll(**{name: value for name, value in given.items() if name != "loss_mask_BT"})


def test_a_sequence_of_no_positions_is_refused():
    head, x, labels, mask = drawn()
    with pytest.raises(ValueError, match="labels: expected at least one integer id"):
        head_loss(params_of(head), x[:, :0], labels[:, :0], mask[:, :0], CFG)


# ---- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "within"), [("bfloat16", 2.0**-7), ("float16", 2.0**-10)])
def test_half_precision_rounds_operands_and_nothing_else(precision, within):
    head, x, labels, mask = drawn(4, dtype=precision)
    scale = jnp.float32(1.0)
    value, sums, d_head, d_x, _ = blockwise(head, x, labels, mask, scale, cfg=CFG, precision=precision, chunk=7)
    nll, _, expected_x, expected_head = expected_of(head.astype(precision), x, labels, mask, CFG)
    np.testing.assert_allclose(sums.nll, nll.sum(), rtol=1e-5)
    assert_close(d_x, expected_x, within=within)
    assert_close(d_head, expected_head, within=within)
    assert (value.dtype, d_head.dtype, d_x.dtype) == (jnp.float32, jnp.float32, jnp.dtype(precision))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_gradient_of_the_head_is_summed_in_float32(precision):
    """Equal positions, one a block: in a sum of half precision the later ones would vanish beside the sum of the former."""
    head, x, _, _ = drawn(5, dtype=precision)
    x = jnp.broadcast_to(x[:1, :1], (8, 250, D))
    labels, mask = np.zeros((8, 250), np.int32), np.ones((8, 250), bool)
    call = functools.partial(blockwise, cfg=CFG, precision=precision)
    whole, parts = (call(head, x, labels, mask, jnp.float32(1.0), chunk=chunk)[2] for chunk in (2000, 1))
    assert_close(parts, whole, within=1e-4)


def test_the_scale_comes_before_the_rounding_to_float16():
    head, x, labels, mask = drawn(6, dtype="float16")
    small = 1e-7
    _, _, expected_x, expected_head = expected_of(head.astype("float16"), x, labels, mask, CFG)
    call = functools.partial(blockwise, head, x, labels, mask, cfg=CFG, precision="float16")
    assert not np.asarray(call(jnp.float32(small / 100))[2]).any()  # what vanishes without a scale
    _, _, d_head, d_x, _ = call(jnp.float32(small * 2.0**23))
    assert_close(d_x, expected_x * small * 2.0**23, within=2e-3)
    assert_close(d_head, expected_head * small * 2.0**23, within=2e-3)


# ---- on eight devices ------------------------------------------------------------------------------------------------

MESHES = {
    "dp": MeshConfig(data=8, rules="dp"),
    "fsdp": MeshConfig(data=2, fsdp=4, rules="fsdp"),
    "tp": MeshConfig(data=2, tensor=4, rules="tp"),  # the last shard of the vocabulary is nearly all padding
    "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp"),
    "context": MeshConfig(fsdp=2, tensor=2, context=2, rules="fsdp_tp"),
}


def laid_out(name, dtype="float32", seed=7):
    """The mesh of a case and its arguments, laid out by the rules."""
    mesh, rules = make_mesh(MESHES[name]), PRESETS[MESHES[name].rules]
    layouts = (rules.weight("VD"), rules.activation("BTD"), rules.activation("BT"), rules.activation("BT"))
    args = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(drawn(seed, dtype), layouts, strict=True)]
    return mesh, (*args, jnp.float32(0.25))


@pytest.mark.parametrize("name", MESHES)
def test_no_mesh_changes_loss_or_gradients(name):
    options = {"cfg": CAPPED, "z_loss": 1e-2, "chunk": 5}
    expected = blockwise(*drawn(7), jnp.float32(0.25), **options)
    mesh, args = laid_out(name)
    with jax.set_mesh(mesh):
        found = blockwise(*args, preset=MESHES[name].rules, **options)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, within=1e-6)
    for gradient, argument in zip(found[2:4], args, strict=False):
        assert gradient.sharding.is_equivalent_to(argument.sharding, gradient.ndim)


def sizes_in(text):
    """The sizes of every array in compiled text."""
    return {tuple(int(size) for size in found.split(",")) for found in re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)}


def test_no_logits_of_a_batch_and_no_whole_vocabulary_are_in_the_compiled_program():
    mesh, args = laid_out("fsdp_tp")
    with jax.set_mesh(mesh):
        text = blockwise.lower(*args, cfg=CFG, preset="fsdp_tp", chunk=5).compile().as_text()
    sizes = sizes_in(text)
    local = B * T // 4
    assert (3, 4, V // 2) not in sizes
    assert {(4, V // 2), (V // 2, D), (3, 4, D)} <= sizes  # blocks of 4 of 12 positions: what is looked for can be seen
    assert not any(V in size for size in sizes), [size for size in sizes if V in size]
    assert max(np.prod(size) for size in sizes if V // 2 in size) == max(4, D) * V // 2 < local * V // 2 * 2
    # The gradient of the head is scattered to where it is stored; only maxima, sums, losses and gradients travel.
    assert len(re.findall(r" reduce-scatter(?:-start)?\(", text)) == 1
    gathered = re.findall(r"= \(?[a-z]+\d+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    assert set(gathered) == {f"{V // 2},{D}"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_one_device_no_array_is_larger_than_a_block_or_the_head(precision):
    args = (*drawn(dtype=precision), jnp.float32(1.0))

    def largest(function, **options):
        sizes = sizes_in(function.lower(*args, cfg=CFG, **options).compile().as_text())
        return max(int(np.prod(size)) for size in sizes)

    assert largest(blockwise, precision=precision, chunk=6) == V * max(6, D)
    assert precision != "float32" or largest(from_logits) == B * T * V
