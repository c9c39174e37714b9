"""Probes of a model that has learnt nothing: its loss, and how its weights were drawn.

They are for a new run alone: what was trained, here or elsewhere, has another loss and other weights.

Axes: L layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.model import Params
from jaxlm.model.spec import named_leaves
from jaxlm.model.untrained import drawn, first_loss_bounds
from jaxlm.parallel import processes
from jaxlm.train.probes import Bench, Probe

DEVIATIONS = 6.0  # a mean, and a mean square, of one layer: 2e-9 of each by chance
ROUNDED = 1e-4  # relative, of sums in float32


def initial_loss(bench: Bench) -> Probe:
    """An untrained model knows nothing: its loss is near ln V, within `jaxlm.model.untrained.first_loss_bounds`."""
    cfg, batch = bench.cfg.model, bench.batch
    loss = float(bench.forward(batch)[1].sum()) / int(batch.loss_mask.sum())
    low, high = first_loss_bounds(cfg, repeated=float((batch.labels == batch.tokens)[batch.loss_mask].mean()))
    expected = f"ln V = {math.log(cfg.vocab_size):.2f} ({low:.2f} to {high:.2f})"
    return Probe("initial_loss", low <= loss <= high, expected, f"{loss:.2f}")


def initial_weights(bench: Bench) -> Probe:
    """Every parameter is drawn as the config says (`jaxlm.model.untrained.drawn`): mean and mean square of each layer's.

    Sees a layer, or a kind of matrix, that starts too large or too small: norms hide it, and the first loss does not move.
    """
    name, specified = "initial_weights", drawn(bench.cfg.model)
    held = named_leaves(bench.params)
    if others := sorted(held.keys() ^ specified.keys()):
        return Probe(name, False, "the leaves that the config specifies", f"{', '.join(others[:4])} otherwise")

    def moments(params: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Mean, and mean square of what is off the mean that is specified, float32 [L] or []."""
        found = {}
        for path, leaf in named_leaves(params).items():
            axes = tuple(range(1 if path.startswith("blocks/") else 0, leaf.ndim))
            off = leaf - specified[path].mean
            found[path] = (jnp.mean(off, axis=axes), jnp.mean(jnp.square(off), axis=axes))
        return found

    measured = processes.whole(jax.jit(moments)(bench.params))
    for path, leaf in held.items():
        means, squares = measured[path]
        std, layers = specified[path].std, np.size(means)
        count = leaf.size // layers
        low, high = (std * ratio for ratio in _within(count))
        mean_limit = DEVIATIONS * std * count**-0.5
        for layer, (mean, root) in enumerate(zip(np.ravel(means), np.sqrt(np.ravel(squares)), strict=True)):
            if abs(float(mean)) <= mean_limit and low <= float(root) <= high:
                continue
            where = f"{path}[{layer}]" if path.startswith("blocks/") else path
            expected = f"{where} drawn with mean {specified[path].mean:g} and standard deviation {std:.4g}"
            return Probe(name, False, f"{expected} ({low:.4g} to {high:.4g})", f"{mean:+.2g} from it, and {root:.4g}")
    return Probe(name, True, "weights drawn as the config says", f"{len(held)} leaves are")


def _within(count: int) -> tuple[float, float]:
    """Bounds of the root mean square of `count` standard normal numbers. Source: Wilson & Hilferty 1931."""
    part = 2.0 / (9.0 * count)
    low, high = (max(1.0 - part + sign * DEVIATIONS * math.sqrt(part), 0.0) ** 1.5 for sign in (-1.0, 1.0))
    return low * (1.0 - ROUNDED), high * (1.0 + ROUNDED)


INITIAL: tuple[Callable[[Bench], Probe], ...] = (initial_loss, initial_weights)
"""The probes of a new run."""
