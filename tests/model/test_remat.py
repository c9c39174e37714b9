"""Rematerialisation: the same numbers from less memory, and never a second copy of the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.model import POLICIES, Mask, hidden, init_params
from jaxlm.model.remat import rematerialised
from jaxlm.model.spec import named_leaves

MODEL = ModelConfig(d_model=64, n_layers=4, n_heads=4, n_kv_heads=2, context_length=64, vocab_size=128, d_ff=192)
ROWS = 4


def objective(params, tokens, precision, remat):
    x, _, _ = hidden(params, tokens, MODEL, Mask.causal(ROWS, MODEL.context_length), policy=POLICIES[precision], remat=remat)
    # Not of the squares: after the last norm their sum is a constant, and its gradient nothing but rounding.
    return jnp.sum(jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) * x.astype(jnp.float32))


@functools.cache
def gradient(precision, remat):
    """Compiled, with the parameters and tokens that it is for."""
    params = init_params(MODEL, jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 128, (ROWS, MODEL.context_length)), jnp.int32)
    function = jax.jit(jax.value_and_grad(functools.partial(objective, precision=precision, remat=remat)))
    return function.lower(params, tokens).compile(), params, tokens


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "block", "offload"])
def test_what_is_computed_again_is_what_was_computed(remat):
    value, grads = gradient("float32", "none")[0](*gradient("float32", "none")[1:])
    found, again = gradient("float32", remat)[0](*gradient("float32", remat)[1:])
    if remat == "dots":  # what is kept is not fused as before, and rounded otherwise
        np.testing.assert_allclose(found, value, rtol=1e-6)
    else:
        assert found == value
    for (name, wanted), leaf in zip(named_leaves(grads).items(), named_leaves(again).values(), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()), err_msg=name)


def test_every_policy_keeps_less_than_the_one_before():
    names = ("nothing", "none", "dots", "block")
    temporary = [gradient("float32", remat)[0].memory_analysis().temp_size_in_bytes for remat in names]
    assert temporary[0] > 1.5 * temporary[1]
    assert temporary[1] > 1.1 * temporary[2]
    assert temporary[2] > 1.3 * temporary[3]


@pytest.mark.parametrize(("precision", "remat"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "block")])
def test_no_second_copy_of_the_weights_is_kept_for_the_backward_pass(precision, remat):
    compiled, params, tokens = gradient(precision, remat)
    kept = jax.eval_shape(lambda p: jax.vjp(lambda p: objective(p, tokens, precision, remat), p)[1], params)
    stacks = [
        leaf
        for leaf in jax.tree.leaves(kept)
        if leaf.ndim > 2 and leaf.shape in {w.shape for w in jax.tree.leaves(params.blocks)}
    ]
    # what is there of the shape of stacked weights are the weights themselves
    assert sorted(str(leaf.dtype) for leaf in stacks) == ["float32"] * 7
    assert compiled is not None


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="remat: expected none, dots, block or offload, found 'all'"):
        rematerialised(lambda x: x, "all", scanned=True)
