"""A config explained: every figure of this room in one nested mapping, as `jaxlm explain --json` prints it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.config.schema import ModelConfig, RunConfig
from jaxlm.model import POLICIES, attention_used
from jaxlm.parallel import MESH_AXES
from jaxlm.scaling.accounting import Flops, flops_per_token, mean_keys, non_embedding, parameters
from jaxlm.scaling.bounds import bounds, ridge
from jaxlm.scaling.collectives import collectives, table
from jaxlm.scaling.estimate import CHINCHILLA, estimate
from jaxlm.scaling.hardware import Hardware
from jaxlm.scaling.memory import memory
from pallas_kernels.dispatch import Target


def explanation(cfg: RunConfig, hardware: Hardware, *, mfu: float = 0.4) -> dict[str, Any]:
    """Parameters, FLOPs, memory, collectives, bounds and time of `cfg`, whose vocabulary is known, on such devices.

    Bytes, FLOPs, seconds, tokens. Touches no device. Raises InputError for an MFU that is no share of 1, and for a kernel
    of attention that there is none of.
    """
    flops = flops_per_token(cfg.model, cfg.train.remat)
    on = Target(hardware.platform, hardware.words)
    attention = attention_used(cfg.model, POLICIES[cfg.train.precision], on=on)
    used = memory(cfg, cpu=hardware.platform == "cpu", kernel=attention.startswith("pallas"))
    counts = parameters(cfg.model)
    time = dataclasses.asdict(estimate(cfg, hardware, mfu=mfu))
    travels = table(collectives(cfg), cfg.mesh, hardware)
    return {
        "mesh": {axis: getattr(cfg.mesh, axis) for axis in MESH_AXES} | {"rules": cfg.mesh.rules, "devices": cfg.mesh.size},
        "hardware": dataclasses.asdict(hardware) | {"ridge": ridge(hardware, cfg.train.precision), "attention": attention},
        "parameters": {**counts, "total": sum(counts.values()), "non_embedding": non_embedding(cfg.model)},
        "flops_per_token": _flops(flops) | {"formulas": formulas(cfg.model, flops)},
        "memory": {
            "resident": used.resident,
            "phases": used.phases,
            "peak_phase": used.phase,
            "peak": used.peak,
            "host": used.host,
            "available": hardware.memory,
            "fits": used.peak <= hardware.memory,
        },
        "collectives": travels,
        "communication_seconds": sum(row["seconds"] for row in travels),
        "bounds": [dataclasses.asdict(bound) | {"fits": bound.fits} for bound in bounds(cfg, hardware)],
        "time": time | {"compute_seconds_at_peak": time["step_seconds"] * mfu, "chinchilla_tokens_per_parameter": CHINCHILLA},
    }


def _flops(flops: Flops) -> dict[str, Any]:
    names = ("forward", "backward", "model", "attention_recompute", "remat_recompute", "hardware")
    return dataclasses.asdict(flops) | {name: getattr(flops, name) for name in names}


def formulas(cfg: ModelConfig, flops: Flops) -> dict[str, str]:
    """The formula of each part of a token's FLOPs, in letters and then in numbers."""
    L, D, N, K, H, F = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.kv_heads, cfg.head_width, cfg.ff_width
    T, V, M = cfg.context_length, cfg.padded_vocab, 3 if cfg.ffn == "swiglu" else 2
    keys = mean_keys(T, cfg.window)
    seen = "(T+1)/2" if not cfg.window or cfg.window >= T else f"S, S the mean of min(t, {cfg.window})"
    again = {
        "none": "nothing",
        "dots": "the scores",
        "block": "a block but its last product",
        "offload": "a block but its last product",
    }
    return {
        "projections": f"2 L D H (2N + 2K) = 2 x {L} x {D} x {H} x {2 * N + 2 * K}",
        "scores": f"4 L N H {seen} = 4 x {L} x {N} x {H} x {keys:g}; causal order halves T",
        "feed_forward": f"2 L {M} D F = 2 x {L} x {M} x {D} x {F}",
        "head": f"2 D V = 2 x {D} x {V}",
        "forward": "the sum: 2 a weight, and the scores",
        "backward": "2 x forward: a gradient by either operand",
        "model": "3 x forward; what MFU counts",
        "attention_recompute": "scores / 2: queries by keys once more",
        "remat_recompute": f"remat {flops.remat}: {again[flops.remat]}",
        "hardware": "all that is computed",
    }
