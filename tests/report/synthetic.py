"""A run directory whose logs are made up: of any steps and layers, with a spike, alarms, samples, a resumption."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from jaxlm.config.load import resolved_json
from jaxlm.config.schema import EvalConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.watch import ChainedLog, number

PARAMETERS = ("attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w_gate", "w_up", "w_down")
ACTIVATIONS = ("residual_rms", "residual_max", "attn_rms", "attn_max", "mlp_rms", "mlp_max", "logit_max", "entropy")


def records(steps, layers, *, seed=0, spike=None, bad=None):
    """Telemetry as a step reports it. spike: a step whose loss and gradients jump. bad: a step with a gradient of NaN."""
    rng = np.random.default_rng(seed)
    depth = 1 + np.arange(layers) / layers
    for step in range(1, steps + 1):
        falling = 2.2 + 4.5 * math.exp(-step / (0.12 * steps + 1)) + 0.06 * rng.standard_normal()
        high = 30.0 if step == spike else 1.0

        def layered(scale, high=high):
            return [float(f"{v:.8g}") for v in scale * depth * high * np.exp(0.1 * rng.standard_normal(layers))]

        def norms(scale, group, layered=layered):
            blocks = {f"blocks/{name}": layered(scale) for name in group}
            return {"embed": scale, "head": scale / 2, "final_norm": scale / 9, **blocks}

        warm = min(1.0, step / (0.02 * steps + 1))
        grads = norms(0.3, PARAMETERS)
        if step == bad:
            grads["blocks/wo"][layers // 2] = "nan"
        validation = {"loss": falling + 0.1, "bits_per_byte": falling / 2.85}
        yield {
            "step": step,
            "loss": falling + (6.0 if step == spike else 0.0),
            "loss_spread": 1.5 + 0.1 * rng.standard_normal(),
            "bits_per_byte": falling / 2.9,
            "z_loss": 1e-3 + 1e-4 * rng.random(),
            "labels": 1000,
            "supervised": 0.97,
            "bytes": 4000,
            "grad_norm": "nan" if step == bad else 0.4 * high,
            "clipped": step == spike,
            "param_norm": 100.0 + 0.001 * step,
            "update_norm": 0.05 * warm,
            "lr": 3e-4 * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))),
            "loss_scale": 2.0 ** (15 + step * 4 // steps),
            "finite": step != bad,
            "skipped": int(step == bad),
            "nonfinite": f"blocks/wo[{layers // 2}]" if step == bad else "",
            "grad_norms": grads,
            "param_norms": norms(5.0, PARAMETERS),
            "update_norms": norms(0.01 * warm, PARAMETERS),
            "embed_rows_still": 0.4 * math.exp(-step / 100),
            "activations": {name: layered(0.8) for name in ACTIVATIONS},
            "nonfinite_forward": {name: [0] * layers for name in ("residual", "attn", "mlp")},
            "backward": {"residual_rms": layered(1e-4)},
            "nonfinite_backward": [0] * layers,
            **({"validation": validation} if step % max(1, steps // 20) == 0 else {}),
            "batch_crc": 12345,
        }


def events(steps, *, spike=None, bad=None, piece="plain"):
    """What the event log would hold beside them."""
    yield {"event": "start", "step": 0}
    for step in range(10, steps + 1, 10):
        yield {"event": "pace", "step": step, "steps": 10, "seconds": 2.0 + 0.2 * math.sin(step / 50), "waited": 0.05}
    if spike:
        told = {"detector": "loss_spike", "what": "loss", "layer": None, "expected": "z < 6", "found": 41.5, "action": "log"}
        yield {"event": "alarm", "step": spike, **told, "bundle": f"bundles/{spike:08d}"}
        told = {"detector": "exploding_layer", "what": "grad_norms/blocks/wq", "layer": 1, "expected": 0.3, "found": 9.1}
        yield {"event": "alarm", "step": spike, **told, "action": "rollback", "bundle": None}
    if bad:
        yield {"event": "skipped", "step": bad, "nonfinite": "blocks/wo[1]"}
    yield {"event": "start", "step": steps // 2}
    for step in range(steps // 4, steps + 1, max(1, steps // 4)):
        pieces = ["Once", " upon", " a", " time", "\n", piece, " é", " 東京", "\x00"]
        yield {"event": "sample", "step": step, "prompt_ids": [1, 2], "ids": list(range(3, 10)), "pieces": pieces}
    yield {"event": "end", "step": steps}


def synthetic(path: Path, *, steps, layers, seed=0, spike=None, bad=None, piece="plain", lr=1e-3, said=None):
    """A run directory at `path`. said: events instead of the made-up ones."""
    path.mkdir(parents=True)
    model = ModelConfig(vocab_size=4096, n_layers=layers, d_model=128, context_length=256)
    config = RunConfig(
        model=model,
        optim=OptimConfig(lr=lr, warmup_steps=steps // 4),
        train=TrainConfig(steps=steps, batch_size=8),
        eval=EvalConfig(every=max(1, steps // 20)),
    )
    (path / "resolved.json").write_bytes(resolved_json(config))
    with ChainedLog(path / "telemetry.jsonl") as log:
        for record in records(steps, layers, seed=seed, spike=spike, bad=bad):
            log.append(record)
    with ChainedLog(path / "events.jsonl") as log:
        for record in said if said is not None else events(steps, spike=spike, bad=bad, piece=piece):
            log.append({key: number(value) if isinstance(value, float) else value for key, value in record.items()})
    return path
