"""What bitwise equality depends on: versions, compiler flags, devices, mesh, accumulation.

Two runs of one program give equal bits only where all of this is equal. A checkpoint carries it, and a resume says which
field differs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "numpy")

# Settings of jax that change numbers, however they were set (environment variable, `jax.config`, a context).
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable", "jax_default_prng_impl")

# Variables that change numbers and are read by the compiler or a library, not by jax.config.
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "TF_CUDNN_DETERMINISTIC")

# Instruction sets by which XLA's CPU compiler and Eigen choose code; the other flags of a processor do not change numbers.
INSTRUCTION_SETS = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "neon",
    "asimd",
    "sve",
    "bf16",
)


def environment(*, mesh_shape: Mapping[str, int], grad_accum: int, precision: str, attention: str) -> dict[str, Any]:
    """The environment of this process as plain JSON values; it starts the devices if they are not started.

    mesh_shape: axis -> size. grad_accum: micro-batches in one step. precision: name of the policy. attention:
    which computation of it was chosen, see `jaxlm.model.attention_used`.
    """
    device = jax.devices()[0]
    found: dict[str, Any] = {name: _version(name) for name in PACKAGES}
    found["python"] = platform.python_version()
    found["settings"] = {name: getattr(jax.config, name) for name in SETTINGS}
    found["xla_flags"] = _xla_flags(os.environ.get("XLA_FLAGS", ""))
    found["variables"] = {name: os.environ.get(name) for name in VARIABLES}
    found["platform"] = device.platform
    # On a GPU the gradient of the embedding is a sum in any order, unless the compiler is told otherwise.
    found["deterministic"] = device.platform != "gpu" or "--xla_gpu_deterministic_ops=true" in found["xla_flags"]
    found["attention"] = str(attention)
    found["device_kind"] = device.device_kind
    found["device_count"] = jax.device_count()
    found["process_count"] = jax.process_count()
    # For an accelerator this names the driver's and the libraries' versions; for a CPU it says "cpu".
    found["runtime"] = str(getattr(device.client, "platform_version", ""))
    # The host's processor computes nothing of a run on an accelerator: there, another host is no difference.
    found["cpu"] = _processor() if device.platform == "cpu" else None
    found["mesh"] = {axis: int(size) for axis, size in mesh_shape.items()}
    found["grad_accum"] = int(grad_accum)
    found["precision"] = str(precision)
    return found


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs: `jax: saved 0.10.2, now 0.12.0`. Empty: equal bits may be expected.

    A field that one side lacks is "unknown" there. Nested fields are joined by a dot: `mesh.data: saved 1, now 2`.
    """
    before, after = _flat(saved), _flat(now)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: saved {_words(before, name)}, now {_words(after, name)}"
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    ]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _words(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return "unknown"
    value = fields[name]
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    return "none" if value is None or value == "" else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _xla_flags(text: str) -> list[str]:
    """The flags in a fixed order, without those that only write dumps. A later flag overrides an earlier one of its name."""
    flags = {flag.partition("=")[0]: flag for flag in text.split() if not flag.startswith("--xla_dump")}
    return [flags[name] for name in sorted(flags)]


def _processor() -> str:
    """The machine and the instruction sets that a CPU compiler chooses by: `x86_64 avx avx2 fma`."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = (line.partition(":") for line in file)
            flags = next((value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), [])
    except OSError:  # no Linux: the machine is all that is cheap to know
        flags = []
    return " ".join([platform.machine(), *(name for name in INSTRUCTION_SETS if name in flags)])
