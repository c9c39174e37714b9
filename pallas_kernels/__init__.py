"""Attention kernels and their oracles. Imports jax only."""

from pallas_kernels.attention import attention
from pallas_kernels.ranges import KeyRanges, causal, decode, packed
from pallas_kernels.reference import attention_float64, attention_reference

__all__ = ["KeyRanges", "attention", "attention_float64", "attention_reference", "causal", "decode", "packed"]
