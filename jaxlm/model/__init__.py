"""Decoder-only transformer as pure functions over a tree of arrays."""

from jaxlm.config.schema import ModelConfig
from jaxlm.model.attention import Mask, attention_used
from jaxlm.model.contract import model_manifest
from jaxlm.model.head import block_shape, head_loss, head_nll
from jaxlm.model.loss import LossSums, loss_sums, token_nll
from jaxlm.model.params import Block, Params, abstract_params, init_params, param_specs
from jaxlm.model.precision import POLICIES, LossScale, Policy
from jaxlm.model.stats import BackwardStats, BlockStats, Site, new_sinks, similarity
from jaxlm.model.transformer import LayerCache, block, check_length, forward, hidden, project

__all__ = [
    "POLICIES",
    "BackwardStats",
    "Block",
    "BlockStats",
    "LayerCache",
    "LossScale",
    "LossSums",
    "Mask",
    "ModelConfig",
    "Params",
    "Policy",
    "Site",
    "abstract_params",
    "attention_used",
    "block",
    "block_shape",
    "check_length",
    "forward",
    "head_loss",
    "head_nll",
    "hidden",
    "init_params",
    "loss_sums",
    "model_manifest",
    "new_sinks",
    "param_specs",
    "project",
    "similarity",
    "token_nll",
]
