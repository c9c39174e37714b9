"""What accelerators can do, from their data sheets, in one table.

All rates are peaks of one device (a GPU, a TPU chip), dense: no sparsity. Bandwidths of links count one direction, since what
is sent and what is received at once are two transfers. Sources:

- A100: NVIDIA A100 80GB SXM data sheet (2021). 600 GB/s of NVLink are both directions together; a DGX A100 has one 200 Gbit/s
  adapter for each GPU.
- H100, H200: NVIDIA H100 and H200 SXM data sheets (2023, 2024), with their tensor figures halved, since those are sparse.
  900 GB/s of NVLink both directions; DGX H100 and H200 have one 400 Gbit/s adapter for each GPU.
- B200: NVIDIA DGX B200 data sheet (2024) divided by its eight GPUs: 1440 GB, 64 TB/s, 14.4 TB/s of NVLink both directions,
  400 Gbit/s for each GPU; dense BF16 2.25 PFLOP/s and FP32 80 TFLOP/s from the Blackwell architecture brief (HGX B200).
- TPU v4, v5e, v5p, v6e: the pages of these versions in Google Cloud's TPU documentation (2026). Inter-chip bandwidths are those
  of both directions together (600, 400, 1200, 800 GB/s), spread over the six links of a 3D torus or the four of a 2D one. What
  leaves the pod is its data-center bandwidth divided by its chips (v5e 6.4 Tbit/s by 256, v6e 25.6 Tbit/s by 256), or that of
  a host divided by its four chips (v4, v5p: 200 Gbit/s). A TPU multiplies float32 as several bfloat16 passes: six for the full
  precision that this project asks for (`pallas_kernels.matmul_precision`), so its float32 peak is a sixth.
  Those of v4, and what leaves a pod of v4 or v5p, are as remembered; the pages at hand gave the other TPUs.
- Of the GPUs, what their data sheets say was read in secondary pages, and the adapters of the DGX machines are as remembered.
- cpu: no data sheet. Two cores with AVX-512, measured: 157 to 181 GFLOP/s in float32 matrix products, which bfloat16 does not
  make faster; the rest is of the order of such a machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.contract import InputError


@dataclass(frozen=True)
class Hardware:
    """One kind of device. FLOP/s, bytes, bytes per second.

    link: what one device sends to the others of its domain at most, over all of its links, one direction. domain: devices that
    such links join. axes: dimensions of the torus that the links make (1: a switch); a collective over one mesh axis uses the
    links of one of them. egress: what one device sends out of its domain.
    """

    name: str
    words: str
    bf16_flops: float
    fp32_flops: float
    memory: float
    bandwidth: float
    link: float
    domain: int
    axes: int
    egress: float

    @property
    def platform(self) -> str:
        """As jax names it."""
        return "cpu" if self.name == "cpu" else "tpu" if self.words.startswith("TPU") else "gpu"

    def flops(self, precision: str) -> float:
        """Peak FLOP/s of matrix products for a name of `TrainConfig.precision`; float16 is as fast as bfloat16."""
        return self.fp32_flops if precision == "float32" else self.bf16_flops

    def axis_bandwidth(self, together: int = 1 << 30, *, leaves: bool = False) -> float:
        """Bytes per second that a device sends in a collective over one mesh axis.

        leaves: whether the axis reaches beyond the domain. Then what its `together` members inside one domain can send out
        of it bounds them all: each brings its own egress.
        """
        inside = self.link / self.axes
        return min(inside, self.egress * together) if leaves else inside


_GB, _TB, _T = 1e9, 1e12, 1e12

HARDWARE: dict[str, Hardware] = {
    h.name: h
    for h in (
        Hardware("a100", "NVIDIA A100 SXM 80GB", 312 * _T, 19.5 * _T, 80 * _GB, 2.039 * _TB, 300 * _GB, 8, 1, 25 * _GB),
        Hardware("h100", "NVIDIA H100 SXM", 989.4 * _T, 67 * _T, 80 * _GB, 3.35 * _TB, 450 * _GB, 8, 1, 50 * _GB),
        Hardware("h200", "NVIDIA H200 SXM", 989.4 * _T, 67 * _T, 141 * _GB, 4.8 * _TB, 450 * _GB, 8, 1, 50 * _GB),
        Hardware("b200", "NVIDIA B200 SXM", 2250 * _T, 80 * _T, 180 * _GB, 8.0 * _TB, 900 * _GB, 8, 1, 50 * _GB),
        Hardware("v4", "TPU v4", 275 * _T, 275 / 6 * _T, 32 * _GB, 1.228 * _TB, 300 * _GB, 4096, 3, 6.25 * _GB),
        Hardware("v5e", "TPU v5e", 197 * _T, 197 / 6 * _T, 16 * _GB, 0.819 * _TB, 200 * _GB, 256, 2, 3.125 * _GB),
        Hardware("v5p", "TPU v5p", 459 * _T, 459 / 6 * _T, 95 * _GB, 2.765 * _TB, 600 * _GB, 8960, 3, 6.25 * _GB),
        Hardware("v6e", "TPU v6e (Trillium)", 918 * _T, 918 / 6 * _T, 32 * _GB, 1.638 * _TB, 400 * _GB, 256, 2, 12.5 * _GB),
        Hardware("cpu", "two CPU cores", 0.17 * _T, 0.17 * _T, 8 * _GB, 20 * _GB, 5 * _GB, 8, 1, 1 * _GB),
    )
}


def hardware_of(kind: str) -> Hardware:
    """A kind of device by name. Raises InputError with the names there are."""
    if kind.lower() not in HARDWARE:
        raise InputError(f"--kind: expected one of {', '.join(HARDWARE)}, found {kind!r}")
    return HARDWARE[kind.lower()]
