"""The model contract: every number that makes another model makes another fingerprint."""

import pytest

from jaxlm.config.schema import ConfigError
from jaxlm.contract import Manifest
from jaxlm.model import model_manifest, param_specs
from jaxlm.model.spec import count_params, spec_sha256

TOKENIZER = Manifest(kind="tokenizer", facts={"vocab_size": 37})


def test_the_contract_names_tokenizer_spec_vocabulary_context_and_config(tiny):
    cfg = tiny(rope_theta=500.0, norm_eps=1e-5)
    manifest = model_manifest(cfg, TOKENIZER)
    assert (manifest.kind, manifest.parents) == ("model", {"tokenizer": TOKENIZER.fingerprint})
    facts = manifest.facts
    assert (facts["vocab_size"], facts["padded_vocab"], facts["context_length"]) == (37, 40, 24)
    assert facts["spec_sha256"] == spec_sha256(param_specs(cfg))
    assert facts["parameters"] == count_params(param_specs(cfg))
    assert (facts["config"]["rope_theta"], facts["config"]["norm_eps"], facts["config"]["tie_embeddings"]) == (
        500.0,
        1e-5,
        True,
    )


CHANGES = {
    "rope_theta": 500.0, "norm_eps": 1e-5, "rope_pairing": "interleaved", "window": 4, "context_length": 16, "qk_norm": True,
    "tie_embeddings": False, "vocab_size": 38, "vocab_multiple": 1, "n_kv_heads": 4, "norm": "post", "pos": "none",
    "ffn": "gelu", "attention_softcap": 1.0, "logit_softcap": 1.0, "attention_bias": True, "d_ff": 32, "n_layers": 3,
    "residual": False,
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_a_config_that_computes_otherwise_has_another_fingerprint(field, tiny):
    assert model_manifest(tiny(), TOKENIZER).fingerprint == model_manifest(tiny(), TOKENIZER).fingerprint
    changed = model_manifest(tiny(**{field: CHANGES[field]}), TOKENIZER)
    assert changed.fingerprint != model_manifest(tiny(), TOKENIZER).fingerprint


def test_another_tokenizer_of_equal_size_makes_another_model(tiny):
    other = Manifest(kind="tokenizer", facts={"vocab_size": 37, "merges": "others"})
    assert model_manifest(tiny(), other).fingerprint != model_manifest(tiny(), TOKENIZER).fingerprint


def test_how_the_layers_are_compiled_is_no_part_of_the_contract(tiny):
    assert model_manifest(tiny(scan_layers=False), TOKENIZER) == model_manifest(tiny(), TOKENIZER)


def test_a_model_without_a_vocabulary_has_no_contract(tiny):
    with pytest.raises(ConfigError, match=r"--model\.vocab-size: expected a size.*found 0"):
        model_manifest(tiny(vocab_size=0), TOKENIZER)
