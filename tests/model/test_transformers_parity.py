"""Logits equal those of Hugging Face's Llama and Qwen3 with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig
from jaxlm.model import Params, abstract_params, forward
from jaxlm.model.params import Block
from jaxlm.model.spec import named_leaves

pytestmark = pytest.mark.hf

D, F, V, L, T = 32, 48, 50, 3, 20
NAMES = {
    "attn_norm": "input_layernorm.weight", "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight", "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias", "v_bias": "self_attn.v_proj.bias", "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight", "mlp_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight", "w_up": "mlp.up_proj.weight", "w_down": "mlp.down_proj.weight",
}  # fmt: skip

LLAMA = {
    "tied, one key head a query head": ({"tie_word_embeddings": True}, {}),
    "untied, grouped, theta, eps": (
        {"num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-2, "tie_word_embeddings": False},
        {"n_kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-2, "tie_embeddings": False},
    ),
    "biases, one key head": ({"attention_bias": True, "num_key_value_heads": 1}, {"attention_bias": True, "n_kv_heads": 1}),
}
QWEN3 = {
    "tied, wide heads": (
        {"head_dim": 16, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"head_dim": 16, "n_kv_heads": 2},
    ),
    "untied": (
        {"head_dim": 8, "num_key_value_heads": 4, "rope_theta": 1e6, "tie_word_embeddings": False},
        {"tie_embeddings": False, "rope_theta": 1e6},
    ),
}


@pytest.fixture(scope="module")
def libraries():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def theirs(libraries, family, fields):
    """A model of `family` with every weight drawn, gains and biases too."""
    torch, transformers = libraries
    theta = fields.get("rope_theta", 10_000.0)
    config = getattr(transformers, family + "Config")(
        hidden_size=D, intermediate_size=F, vocab_size=V, num_hidden_layers=L, max_position_embeddings=64,
        num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="eager",
        **{"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, **fields},
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, family + "ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def ours(state, cfg):
    """The state dict of a Hugging Face model as `Params`: linear layers store [out, in], heads side by side."""
    specs = named_leaves(abstract_params(cfg))

    def leaf(field):
        if (spec := specs.get(f"blocks/{field}")) is None:
            return None
        layers = np.stack([state[f"model.layers.{i}.{NAMES[field]}"] for i in range(L)])
        return jnp.asarray((layers.swapaxes(1, 2) if field.startswith("w") else layers).reshape(spec.shape))

    rows = ((0, cfg.padded_vocab - V), (0, 0))
    return Params(
        embed=jnp.pad(state["model.embed_tokens.weight"], rows),
        blocks=Block(**{field: leaf(field) for field in NAMES}),
        final_norm=jnp.asarray(state["model.norm.weight"]),
        head=None if cfg.tie_embeddings else jnp.pad(state["lm_head.weight"], rows),
    )


@pytest.mark.parametrize(
    ("family", "name"), [*(("Llama", name) for name in LLAMA), *(("Qwen3", name) for name in QWEN3)]
)  # fmt: skip
def test_logits_equal_those_of(family, name, libraries):
    torch, _ = libraries
    their_fields, our_fields = (LLAMA if family == "Llama" else QWEN3)[name]
    cfg = ModelConfig(
        d_model=D, d_ff=F, vocab_size=V, n_layers=L, n_heads=4, context_length=64, vocab_multiple=16,
        qk_norm=family == "Qwen3", **our_fields,
    )  # fmt: skip
    model = theirs(libraries, family, their_fields)
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    params = ours(state, cfg)
    used = 1 + 1 + (not cfg.tie_embeddings) + L * len(jax.tree.leaves(params.blocks))
    assert len([key for key in state if key != "lm_head.weight" or not cfg.tie_embeddings]) == used
    ids = np.random.default_rng(0).integers(0, V, (2, T))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    assert expected.std() > 0.1
    found = forward(params, jnp.asarray(ids, jnp.int32), cfg)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
