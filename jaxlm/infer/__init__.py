"""Inference: the key/value cache, sampling, the engine."""

from jaxlm.infer.cache import Cache, decode_steps, empty_cache, extend, pad_left, prefill_step
from jaxlm.infer.engine import Engine, Generation
from jaxlm.infer.sampling import Sampling, filtered, sample

__all__ = [
    "Cache",
    "Engine",
    "Generation",
    "Sampling",
    "decode_steps",
    "empty_cache",
    "extend",
    "filtered",
    "pad_left",
    "prefill_step",
    "sample",
]
