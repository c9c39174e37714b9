#!/usr/bin/env python3
"""What only a card can show of the kernels for it, one check a process, since a kernel may hang: JSON on the last line.

    scripts/check_kernels.py stores | target | length | one-query

The exit status is 1 where what has to hold does not; without kernels for the device a check says that it was kept out.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as kernels
from pallas_kernels.dispatch import target, unfit

REPETITIONS = 50


def stores() -> dict[str, Any]:
    """Whether a tile that ends beyond the last row of an array is written up to there: the rows after it keep what they held.

    The kernels rely on it for every length that is no multiple of their tiles.
    """
    import jax.experimental.pallas as pl
    import jax.experimental.pallas.mosaic_gpu as plgpu

    from pallas_kernels.hopper import warpgroup

    rows, tile = 72, 64

    def kernel(out_ref: Any, smem: Any) -> None:
        smem[...] = plgpu.layout_cast(jnp.full((tile, 64), 7.0, jnp.bfloat16), plgpu.Layout.WGMMA)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem, out_ref.at[0, pl.ds(jax.lax.axis_index("tiles") * tile, tile)])
        plgpu.wait_smem_to_gmem(0)

    filled = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((2, rows, 64), jnp.bfloat16),
        scratch_types=(warpgroup.matrix(tile, 64, dtype=jnp.bfloat16),),
        grid=(2,),
        grid_names=("tiles",),
    )
    first, behind = jax.jit(filled)()  # nothing is to be written behind the first: it holds what it held
    found = {"rows equal": bool((first == 7.0).all()), "clipped": not bool((behind == 7.0).any())}
    return {**found, "held": all(found.values())}


def target_config() -> dict[str, Any]:
    """What the compiler is told of this card, for compiling ahead of time where there is none."""
    from jaxlib import xla_client

    return {"target config": str(xla_client.get_topology_for_devices(jax.devices()).target_config), "held": True}


def at_length() -> dict[str, Any]:
    """At lengths of use, some of which end within a tile: the largest error over that of the unfused computation in the same
    dtype, both against float32, of output, log-sum-exp and each gradient through both; whether repetitions give equal bits, and
    whether the output is that without statistics. A store past the end of one row of the batch would lie in the next."""
    cases = [
        (4096, 128, "bfloat16", 0.0, "causal"),
        (3333, 128, "bfloat16", 0.0, "packed"),
        (4000, 64, "bfloat16", 30.0, "causal"),
        (2049, 256, "bfloat16", 0.0, "window"),
        (1000, 80, "float16", 0.0, "random"),
        (2500, 64, "float16", 0.0, "packed"),
    ]
    found: dict[str, Any] = {"held": True}
    for T, H, dtype, softcap, mask in cases:
        row = _at_length(T, H, dtype, softcap, _ranges(mask, T))
        found[f"T {T}, H {H}, {dtype}, cap {softcap}, {mask}"] = row
        found["held"] &= near(row, softcap) and row["equal bits"] and row["without statistics"]
        print(f"T {T}, H {H}, {mask}", row, file=sys.stderr, flush=True)
    return found


def near(row: dict[str, Any], softcap: float) -> bool:
    """FlashAttention's rule for the output and each gradient; NaN is not near.

    The log-sum-exp is float32 in both computations, so that its ratio says little: it is bounded by itself.
    """
    ratios = [ratio for i, ratio in enumerate(row["error / unfused"]) if i != 1]
    return all(ratio <= (3 if softcap else 2) for ratio in ratios) and row["largest"][1] < 1e-2


def _ranges(mask: str, T: int) -> kernels.KeyRanges:
    """For a batch of two."""
    if mask in ("causal", "window"):
        return kernels.causal(2, T, window=700 if mask == "window" else 0)
    rng = np.random.default_rng(T)
    if mask == "random":  # also empty and reversed ones
        start = rng.integers(-50, T, (2, T))
        return kernels.KeyRanges(*(jnp.asarray(x, jnp.int32) for x in (start, start + rng.integers(-T // 4, T, (2, T)))))
    t = np.arange(T)
    first = np.sort(np.concatenate([[0], rng.choice(np.arange(1, T), 5, replace=False)]))
    segments = np.searchsorted(first, t, side="right")
    positions = t - first[segments - 1]
    segments[T - T // 40 :] = 0
    return kernels.packed(*(jnp.tile(jnp.asarray(x, jnp.int32), (2, 1)) for x in (segments, positions)))


def _at_length(T: int, H: int, dtype: str, softcap: float, ranges: kernels.KeyRanges) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(T), 5)
    shapes = ((2, T, n, H) for n in (4, 2, 2, 4))
    short = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)]
    d_lse = jax.random.normal(keys[4], (2, T, 4))

    def made(function: Callable, q: Any, k: Any, v: Any, d_out: Any) -> list:
        """Output, log-sum-exp where something is seen, and the gradients through both."""

        def both(q: Any, k: Any, v: Any) -> tuple:
            out, lse = function(q, k, v)[:2]
            return out, jnp.where(lse > -1e29, lse, 0.0)

        results, pull = jax.vjp(both, q, k, v)
        return [*results, *pull((d_out, d_lse))]

    def kernel(q: Any, k: Any, v: Any, statistics: bool = True) -> Any:
        return kernels.attention(q, k, v, ranges, softcap=softcap, kernel="pallas", statistics=statistics)

    def plain(q: Any, k: Any, v: Any) -> Any:
        return kernels.attention_reference(q, k, v, ranges, softcap=softcap)

    run = jax.jit(functools.partial(made, kernel))
    wide = jax.jit(functools.partial(made, plain))(*(x.astype(jnp.float32) for x in short))
    first = run(*short)
    errors = [
        [float(jnp.abs(a.astype(jnp.float32) - b).max()) for a, b in zip(found, wide, strict=True)]
        for found in (first, jax.jit(functools.partial(made, plain))(*short))
    ]
    same = all(bool(jnp.array_equal(a, b)) for _ in range(REPETITIONS) for a, b in zip(first, run(*short), strict=True))
    without = jax.jit(functools.partial(kernel, statistics=False))(*short[:3])
    return {
        "error / unfused": [round(a / b, 3) if b else float(a > 0) for a, b in zip(*errors, strict=True)],
        "largest": errors[0],
        "equal bits": same,
        "without statistics": bool(jnp.array_equal(without[0], first[0])),
    }


def one_query() -> dict[str, Any]:
    """Decoding over permuted pages, what is stale in them NaN: the largest error against float64 over the largest number, and
    whether repetitions give equal bits."""
    from pallas_kernels.hopper.decode import decode

    found: dict[str, Any] = {"held": True}
    for H, dtype, G, page, softcap in (
        (128, "bfloat16", 8, 128, 0.0),
        (64, "float16", 3, 64, 20.0),
        (256, "bfloat16", 1, 16, 0.0),
    ):
        B, K, M = 3, 2, 4096 // page
        keys = jax.random.split(jax.random.key(H), 4)
        q = jax.random.normal(keys[0], (B, K * G, H), dtype)
        k, v = (jax.random.normal(key, (B * M + 5, page, K, H), dtype) for key in keys[1:3])
        table = jax.random.permutation(keys[3], B * M + 5)[: B * M].reshape(B, M).astype(jnp.int32)
        starts, ends = jnp.asarray([0, 700, 0], jnp.int32), jnp.asarray([4096, 3001, 1], jnp.int32)
        lies = jnp.full((B * M + 5, page), -1).at[table].set(jnp.arange(M * page).reshape(1, M, page))
        of = jnp.zeros((B * M + 5,), jnp.int32).at[table].set(jnp.arange(B)[:, None])
        seen = (lies >= starts[of][:, None]) & (lies < ends[of][:, None])
        k, v = (jnp.where(seen[:, :, None, None], x, jnp.nan).astype(dtype) for x in (k, v))
        run = jax.jit(functools.partial(decode, scale=H**-0.5, softcap=softcap))
        given = q, k, v, table, starts, ends
        first = run(*given)
        dense = (np.nan_to_num(np.asarray(x[table].reshape(B, M * page, K, H), np.float64)) for x in (k, v))
        exact = kernels.attention_float64(np.asarray(q, np.float64)[:, None], *dense, starts[:, None], ends[:, None], softcap)
        error = np.abs(np.asarray(first[0], np.float64) - exact.out_BTNH[:, 0]).max() / np.abs(exact.out_BTNH).max()
        same = all(bool(jnp.array_equal(a, b)) for _ in range(REPETITIONS) for a, b in zip(first, run(*given), strict=True))
        found[f"H {H}, {dtype}, {G} heads of one, pages of {page}, cap {softcap}"] = {"error": float(error), "equal bits": same}
        found["held"] &= bool(error < 2**-7) and same
    return found


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "stores": stores,
    "target": target_config,
    "length": at_length,
    "one-query": one_query,
}


def main() -> int:
    """One of them."""
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        print(
            f"check_kernels: expected one of {', '.join(CHECKS)}, found {' '.join(sys.argv[1:]) or 'nothing'}", file=sys.stderr
        )
        return 2
    if target().platform != "gpu" or (why := unfit(target(), "bfloat16", 128)):
        print(json.dumps({"kept out": f"no kernel: {why if target().platform == 'gpu' else 'no GPU'}"}))
        return 0
    found = CHECKS[sys.argv[1]]()
    print(json.dumps(found))
    return 0 if found["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
