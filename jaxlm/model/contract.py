"""What a model promises to the layers below it: the tokenizer it speaks, its spec tree, its positions."""

from __future__ import annotations

from typing import Any

from jaxlm.config.schema import ModelConfig, numbers
from jaxlm.contract import Manifest
from jaxlm.model.params import param_specs
from jaxlm.model.spec import count_params, spec_sha256


def model_manifest(cfg: ModelConfig, tokenizer: Manifest) -> Manifest:
    """The model contract. It is no directory of its own: a run's manifest holds it, a checkpoint names it as parent."""
    specs = param_specs(cfg)
    facts: dict[str, Any] = {
        "config": numbers(cfg),
        "spec_sha256": spec_sha256(specs),
        "parameters": count_params(specs),
        "vocab_size": cfg.vocab_size,
        "padded_vocab": cfg.padded_vocab,
        "context_length": cfg.context_length,
    }
    return Manifest(kind="model", facts=facts, parents={"tokenizer": tokenizer.fingerprint})
