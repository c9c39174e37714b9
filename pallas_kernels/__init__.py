"""Kernels for attention and for the cross-entropy of a head, and their oracles. Imports jax only."""

from pallas_kernels.attention import attention, attention_gradients
from pallas_kernels.dispatch import KERNELS, Kernel, attention_path
from pallas_kernels.linear_cross_entropy import linear_cross_entropy
from pallas_kernels.ranges import KeyRanges, causal, decode, packed
from pallas_kernels.reference import Attended, attention_float64, attention_reference, matmul_precision

__all__ = [
    "KERNELS",
    "Attended",
    "Kernel",
    "KeyRanges",
    "attention",
    "attention_float64",
    "attention_gradients",
    "attention_path",
    "attention_reference",
    "causal",
    "decode",
    "linear_cross_entropy",
    "matmul_precision",
    "packed",
]
