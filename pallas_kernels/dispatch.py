"""Which computation of attention a program is compiled with: chosen when it is traced, and said in words.

The device is the one that the program is for: that of the mesh in use, or of `jax.sharding.use_abstract_mesh` where a program
is made for a device that is not here, else `jax.default_device`, else the first of this process.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import tuning

Kernel = Literal["auto", "reference", "pallas", "cudnn"]
KERNELS: tuple[Kernel, ...] = ("auto", "reference", "pallas", "cudnn")
HOPPER = re.compile(r"\bG?H(?:20|100|200|800)\b")  # compute capability 9.0


class Target(NamedTuple):
    """platform: cpu, gpu or tpu. kind: as jax names the device."""

    platform: str
    kind: str


def target() -> Target:
    """The device that what is traced now is for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        first = jax.config.jax_default_device or jax.devices()[0]
        first = jax.devices(first)[0] if isinstance(first, str) else first
        return Target(first.platform, first.device_kind)
    return Target({"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform), device.device_kind)


def unfit(on: Target, dtype: jax.typing.DTypeLike, width: int) -> str:
    """Why there is no kernel for such operands on such a device; empty where there is one. width: of a head."""
    if why := _unfit_anywhere(on, dtype):
        return why
    return "" if width <= 256 or on.platform == "tpu" else f"it takes heads of a width up to 256, found {width}"


def _unfit_anywhere(on: Target, dtype: jax.typing.DTypeLike) -> str:
    """The same whatever the kernel and its sizes."""
    name = jnp.dtype(dtype).name
    if on.platform == "tpu":
        return "" if name in ("bfloat16", "float32") else f"it takes bfloat16 or float32, found {name}"
    if on.platform != "gpu":
        return f"there is none for {on.platform}"
    if not HOPPER.search(on.kind):
        return f"there is one for Hopper GPUs (H100, H200), found {on.kind}"
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11):
        return f"it needs jax 0.11 or newer, found {jax.__version__}; that needs Python 3.12 or newer"
    return "" if name in ("bfloat16", "float16") else f"it takes bfloat16 or float16, found {name}"


def unfit_for_head(on: Target, dtype: jax.typing.DTypeLike, d_model: int) -> str:
    """Why there is no kernel for the log-sum-exp of a head's logits there; empty where there is one."""
    if why := _unfit_anywhere(on, dtype):
        return why
    fits = on.platform == "tpu" or d_model % 64 == 0
    return "" if fits else f"it takes models of a width that 64 divides, found {d_model}"


def unfit_for_cudnn(on: Target, dtype: jax.typing.DTypeLike, width: int) -> str:
    """Why cuDNN takes no such operands there; empty where it does."""
    name = jnp.dtype(dtype).name
    if on.platform != "gpu" or "NVIDIA" not in on.kind:
        return f"cuDNN is for NVIDIA GPUs, found {on.kind}"
    if name not in ("bfloat16", "float16"):
        return f"cuDNN takes bfloat16 or float16, found {name}"
    return "" if width % 8 == 0 and width <= 256 else f"cuDNN takes heads of a width that 8 divides, up to 256, found {width}"


def chosen(kernel: Kernel, dtype: jax.typing.DTypeLike, width: int, *, on: Target | None = None) -> str:
    """Which it is: "hopper", "tpu", "xla" or "cudnn".

    kernel: "auto" is the kernel where there is one, "reference" is XLA's, "pallas" is the kernel or a ValueError that says why
    there is none, "cudnn" likewise: a baseline, with a mask of T x S, which is never chosen by itself. It never falls back
    without a word: `attention_path` says what was chosen, and runs record it.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention: expected one of {', '.join(KERNELS)}, found {kernel!r}")
    if kernel == "reference":
        return "xla"
    on = target() if on is None else on
    why = unfit_for_cudnn(on, dtype, width) if kernel == "cudnn" else unfit(on, dtype, width)
    return _decided("attention", kernel, on, why)


def _decided(what: str, kernel: Kernel, on: Target, why: str) -> str:
    """The name of what is taken on a device, where `why` says why a kernel cannot be, or nothing."""
    if why and kernel != "auto":
        raise ValueError(f"{what}: expected operands and a device for {kernel}, but {why}; take auto or reference")
    if kernel == "cudnn":
        return "cudnn"
    return "xla" if why else {"gpu": "hopper", "tpu": "tpu"}[on.platform]


def chosen_for_head(kernel: Kernel, dtype: jax.typing.DTypeLike, d_model: int, *, on: Target | None = None) -> str:
    """The same for the cross-entropy of a head, which cuDNN has not: "hopper", "tpu" or "xla"."""
    if kernel not in ("auto", "reference", "pallas"):
        raise ValueError(f"linear_cross_entropy: expected auto, reference or pallas, found {kernel!r}")
    if kernel == "reference":
        return "xla"
    on = target() if on is None else on
    return _decided("linear_cross_entropy", kernel, on, unfit_for_head(on, dtype, d_model))


def attention_path(kernel: Kernel, dtype: jax.typing.DTypeLike, width: int, *, on: Target | None = None) -> str:
    """What `chosen` says, in words for records, with a digest of the table of tiles: the order of sums differs."""
    on = target() if on is None else on
    name = chosen(kernel, dtype, width, on=on)
    if name == "cudnn":
        return "cudnn, a mask of T x S"
    if name != "xla":
        return f"pallas, {name}, tiles {tuning.digest(name)}"
    return "xla, tiles in sequence" if on.platform == "cpu" else "xla, rows at once"
