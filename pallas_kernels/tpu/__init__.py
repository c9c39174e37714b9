"""Attention kernels for TPUs, in Pallas Mosaic TPU: forward, the gradients, and one query against a paged cache.

Scores are held as [key, query] throughout: maxima and sums over keys go down the sublanes, and what belongs to a query, its
range, its log-sum-exp, is a row of lanes, as it lies in memory. Heads come before positions, as a block's last two axes have
to be tiles.
"""

from pallas_kernels.tpu.backward import backward
from pallas_kernels.tpu.decode import decode
from pallas_kernels.tpu.forward import forward
from pallas_kernels.tpu.tiling import Tiling, tiling_for

__all__ = ["Tiling", "backward", "decode", "forward", "tiling_for"]
