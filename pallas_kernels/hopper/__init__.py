"""Attention kernels for Hopper GPUs (sm_90), in Pallas Mosaic GPU.

They need jax 0.11: import `forward`, `backward` and `decode` from the modules of these names, and only where one is to run.
"""

from pallas_kernels.hopper.tiling import HEAD_WIDTHS, Blocks, Tiling, tiling_for

__all__ = ["HEAD_WIDTHS", "Blocks", "Tiling", "tiling_for"]
