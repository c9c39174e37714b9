"""The parameters of a config: which there are, how many, and how they start."""

import jax
import numpy as np
import pytest

from jaxlm.axes import ALPHABET
from jaxlm.model import abstract_params, init_params, param_specs
from jaxlm.model.spec import count_params, named_leaves

WEIGHTS = {"embed", "blocks/wq", "blocks/wk", "blocks/wv", "blocks/wo", "blocks/w_up", "blocks/w_down"}
NORMS = {"blocks/attn_norm", "blocks/mlp_norm"}
BIASES = {f"blocks/{name}_bias" for name in "qkvo"}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, NORMS | {"final_norm", "blocks/w_gate"}),
        ({"norm": "post"}, NORMS | {"blocks/w_gate"}),
        ({"norm": "none", "ffn": "gelu"}, set()),
        ({"norm": "none", "ffn": "silu", "qk_norm": True}, {"blocks/q_norm", "blocks/k_norm"}),
        ({"norm": "none", "ffn": "silu", "attention_bias": True}, BIASES),
        ({"norm": "none", "ffn": "silu", "tie_embeddings": False}, {"head"}),
    ],
)
def test_a_config_has_the_leaves_that_it_uses_and_no_others(fields, more, tiny):
    assert set(named_leaves(param_specs(tiny(**fields)))) == WEIGHTS | more


def test_the_count_follows_the_formula(tiny):
    cfg = tiny(qk_norm=True, attention_bias=True, tie_embeddings=False, head_dim=6)
    L, D, N, K, H, F, V = 2, 16, 4, 2, 6, 24, 40
    block = 2 * D * N * H + 2 * D * K * H + (N + 2 * K) * H + D + 2 * H + 3 * D * F + 2 * D
    assert count_params(param_specs(cfg)) == L * block + 2 * V * D + D
    assert sum(leaf.size for leaf in jax.tree.leaves(init_params(cfg, jax.random.key(0)))) == L * block + 2 * V * D + D


def test_letters_are_of_the_alphabet_and_each_stands_for_one_size(tiny):
    for path, spec in named_leaves(param_specs(tiny(qk_norm=True, attention_bias=True))).items():
        assert set(spec.dims) <= set(ALPHABET), path
        sizes = {"L": 2, "D": 16, "N": 4, "K": 2, "H": 4, "F": 24, "V": 40}
        assert spec.shape == tuple(sizes[letter] for letter in spec.dims), path


def test_weights_start_with_the_width_of_their_fan_in_and_residual_writers_smaller(tiny):
    cfg = tiny(d_model=64, d_ff=128, n_heads=4, n_kv_heads=2, n_layers=8, vocab_size=500, init_std=0.05, tie_embeddings=False)
    params = named_leaves(init_params(cfg, jax.random.key(0)))
    widths = {f"blocks/{name}": 64**-0.5 for name in ("wq", "wk", "wv", "w_gate", "w_up")}
    widths |= {"blocks/wo": 64**-0.5 / 4, "blocks/w_down": 128**-0.5 / 4, "embed": 0.05, "head": 0.05}
    for path, width in widths.items():
        values = np.asarray(params[path], np.float64)
        assert values.std() == pytest.approx(width, rel=0.03), path
        assert abs(values.mean()) < 4 * width / np.sqrt(values.size), path
    assert all((np.asarray(params[path]) == 1).all() for path in (*NORMS, "final_norm"))


def test_layers_start_apart_and_biases_at_zero(tiny):
    params = init_params(tiny(attention_bias=True), jax.random.key(0))
    assert abs(np.corrcoef(*np.asarray(params.blocks.wq).reshape(2, -1))[0, 1]) < 0.25
    assert all((np.asarray(named_leaves(params)[path]) == 0).all() for path in BIASES)


def test_an_option_that_adds_leaves_changes_no_initial_value_of_the_others(tiny):
    key = jax.random.key(5)
    plain = named_leaves(init_params(tiny(norm="none"), key))
    rich = named_leaves(init_params(tiny(qk_norm=True, attention_bias=True, tie_embeddings=False), key))
    assert len(rich) > len(plain)
    for path, values in plain.items():
        np.testing.assert_array_equal(values, rich[path], err_msg=path)


def test_equal_keys_give_equal_parameters_and_other_keys_others(tiny):
    first, again, other = (init_params(tiny(), jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (np.asarray(first.blocks.wq) != np.asarray(other.blocks.wq)).all()


def test_abstract_parameters_are_those_of_the_model(tiny):
    cfg = tiny(tie_embeddings=False)
    views = [
        jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)
        for tree in (abstract_params(cfg), init_params(cfg, jax.random.key(0)))
    ]
    assert views[0] == views[1]
