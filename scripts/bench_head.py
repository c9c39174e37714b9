#!/usr/bin/env python3
"""Cross-entropy of a head four ways in one run: in blocks, as models train, with all logits, and without, by kernel and XLA.

    scripts/bench_head.py [--out docs/bench/head.json]

Seconds are medians, forward and with the gradients; memory is what a compiled program takes beside its operands and results.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from bench_attention_gpu import median_seconds

from jaxlm.config.schema import ModelConfig
from jaxlm.model import POLICIES, Params, head_loss
from pallas_kernels import linear_cross_entropy
from pallas_kernels.dispatch import target, unfit_for_head

LARGE = ((16384, 768, 50304), (16384, 2048, 128256))  # positions, width of the model, vocabulary
SMALL = ((2048, 256, 8192),)


def stored(x_TD: jax.Array, head_VD: jax.Array, labels_T: jax.Array) -> jax.Array:
    """The loss from all logits, float32."""
    logits_TV = jnp.einsum("TD,VD->TV", x_TD, head_VD, preferred_element_type=jnp.float32)
    label_T = jnp.take_along_axis(logits_TV, labels_T[:, None], axis=1)[:, 0]
    return jnp.sum(jax.nn.logsumexp(logits_TV, axis=1) - label_T)


def in_blocks(x_TD: jax.Array, head_VD: jax.Array, labels_T: jax.Array) -> jax.Array:
    """The loss as models train with it."""
    V, D = head_VD.shape
    cfg = ModelConfig(vocab_size=V, d_model=D, n_heads=D // 64, vocab_multiple=1, tie_embeddings=True)
    params = Params(**{name: None for name in Params.__dataclass_fields__} | {"embed": head_VD})
    mask_BT = jnp.ones((1, len(x_TD)), jnp.bool_)
    return head_loss(params, x_TD[None], labels_T[None], mask_BT, cfg, policy=POLICIES[x_TD.dtype.name])[0]


def computations() -> dict[str, Callable[..., jax.Array]]:
    """By name; the first is the peer of the ratios."""

    def without(kernel: str) -> Callable[..., jax.Array]:
        return lambda x, head, labels: jnp.sum(linear_cross_entropy(x, head, labels, kernel=kernel)[0])  # type: ignore[arg-type]

    found = {"in blocks": in_blocks, "all logits": stored, "none, XLA": without("reference")}
    return found if unfit_for_head(target(), "bfloat16", 768) else {**found, "none, kernel": without("pallas")}


def measure(function: Callable[..., jax.Array], operands: tuple, calls: int) -> dict[str, Any]:
    """Seconds and bytes, forward and with the gradients; an error is a result."""
    row: dict[str, Any] = {}
    try:
        for way, made in (("forward", function), ("both", jax.value_and_grad(function, (0, 1)))):
            compiled = jax.jit(made).lower(*operands).compile()
            row[way] = median_seconds(functools.partial(compiled, *operands), repetitions=5, calls=calls)
            row[f"{way} bytes"] = compiled.memory_analysis().temp_size_in_bytes
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/bench/head.json", help="where the JSON goes")
    args = parser.parse_args()
    cpu = jax.default_backend() == "cpu"
    dtype, rows = "float32" if cpu else "bfloat16", []
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {dtype}")
    print("ms (times as fast as in blocks), MB beside operands and results")
    for T, D, V in SMALL if cpu else LARGE:
        keys = jax.random.split(jax.random.key(0), 3)
        x, head = (jax.random.normal(key, (n, D), dtype) for key, n in zip(keys, (T, V), strict=False))
        operands = (x, 0.02 * head, jax.random.randint(keys[2], (T,), 0, V))
        print(f"\n{T} positions, width {D}, {V} ids\n{'logits':<16}{'forward':>28}{'and backward':>30}")
        of_shape = {name: measure(function, operands, 1 if cpu else 5) for name, function in computations().items()}
        for name, row in of_shape.items():
            cells = [row["error"]] if "error" in row else []
            for way in () if cells else ("forward", "both"):
                ratio = of_shape["in blocks"].get(way, float("nan")) / row[way]
                cells.append(f"{1e3 * row[way]:.2f} ({ratio:.2f} x), {row[f'{way} bytes'] / 1e6:.0f} MB")
            print(f"{name:<16}{cells[0]:>28}{(cells[1:] or [''])[0]:>30}")
            rows.append({"shape": (T, D, V), "name": name, **row})
    body = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "dtype": dtype, "rows": rows}
    Path(args.out).write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
