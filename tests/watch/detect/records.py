"""Telemetry of a run in which nothing is wrong, and of small changes to it."""

import copy
import math

import numpy as np

PARAMETERS = ("blocks/wq", "blocks/wo", "blocks/mlp_norm")
LAYERS = 4


def healthy(steps, *, seed=0, layers=LAYERS, first=1):
    """Records of every field, with the noise of a small run: the loss falls, the norms of the parameters grow."""
    rng = np.random.default_rng(seed)
    norms = {name: np.full(layers, 5.0) for name in PARAMETERS} | {"embed": np.array(8.0), "final_norm": np.array(3.0)}
    records = []
    for step in range(first, first + steps):
        jitter = lambda size, spread=0.1: np.exp(spread * rng.standard_normal(size))  # noqa: E731
        lr = 1e-3 * min(1.0, step / 20)
        updates = {name: 0.5 * lr * norm * jitter(norm.shape) for name, norm in norms.items()}
        norms = {name: norm + 0.3 * updates[name] * rng.uniform(-1, 1, norm.shape) for name, norm in norms.items()}
        grads = {name: 0.1 * jitter(norm.shape, 0.2) for name, norm in norms.items()}
        residual = np.array([1.0 * 1.2**layer for layer in range(layers)]) * jitter(layers, 0.03)
        added = 0.6 * residual
        parts = {"residual": residual, "attn": added * jitter(layers, 0.05), "mlp": added * jitter(layers, 0.05)}
        loss = 2.5 + 3.0 * (1 + step / 30) ** -0.6 + 0.02 * rng.standard_normal()
        labels, text = 512, int(1500 * (1 + 0.05 * rng.standard_normal()))
        total = lambda group: float(np.sqrt(sum(np.sum(np.square(v)) for v in group.values())))  # noqa: E731
        records.append({
            "step": step, "loss": loss, "loss_spread": 1.5 * float(jitter(())), "bits_per_byte": loss / 2.1,
            "z_loss": 40.0, "labels": labels, "supervised": 1.0, "bytes": text, "grad_norm": total(grads), "clipped": False,
            "param_norm": total(norms), "update_norm": total(updates), "lr": lr, "loss_scale": 1.0, "finite": True,
            "skipped": 0, "nonfinite": "", "embed_rows_still": 0.25, "similarity": 0.2, "batch_crc": int(rng.integers(1 << 32)),
            "grad_norms": plain(grads), "param_norms": plain(norms), "update_norms": plain(updates),
            "activations": plain(
                {f"{part}_rms": value for part, value in parts.items()}
                | {f"{part}_max": 6.0 * value for part, value in parts.items()}
                | {"logit_max": 4.0 * jitter(layers), "entropy": 2.0 * jitter(layers, 0.05)}
            ),
            "nonfinite_forward": {part: [0] * layers for part in parts},
            "backward": plain({"residual_rms": 1e-3 * jitter(layers)}),
            "nonfinite_backward": [0] * layers,
        })  # fmt: skip
    return records


def plain(group):
    """Arrays as JSON holds them."""
    return {name: value.tolist() for name, value in group.items()}


def changed(records, start, change, *, steps=None):
    """A copy in which `change(record, steps since start)` has been applied from step `start` on, to so many steps."""
    records = copy.deepcopy(records)
    end = math.inf if steps is None else start + steps
    for record in records:
        if start <= record["step"] < end:
            change(record, record["step"] - start)
    return records
