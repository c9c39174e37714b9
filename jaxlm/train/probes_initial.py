"""Probes of a model that has learnt nothing: its loss, and how its weights were drawn.

They are for a new run alone: what was trained, here or elsewhere, has another loss and other weights.

Axes: L layer.
"""

from __future__ import annotations

import itertools
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


def apart(bench: Bench) -> Probe:
    """No two layers of a matrix, and no two matrices of one shape, were drawn alike: by chance their elements do not correlate.

    Sees a key that is used twice. In every moment of its own such a matrix is as it should be.
    """
    name, specified = "apart", drawn(bench.cfg.model)
    matrices = {path: leaf for path, leaf in named_leaves(bench.params).items() if specified[path].std}
    pairs = [(a, b) for a, b in itertools.combinations(matrices, 2) if matrices[a].shape == matrices[b].shape]
    layered = [path for path, leaf in matrices.items() if path.startswith("blocks/") and len(leaf) > 1]

    def correlations(params: Params) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Mean products over both deviations: of each layer with the one before it, in a ring; of pairs, by layer."""
        unit = {path: leaf / specified[path].std for path, leaf in named_leaves(params).items() if path in matrices}

        def mean(a: jax.Array, b: jax.Array, path: str) -> jax.Array:
            b = jax.sharding.reshard(b, jax.typeof(a).sharding)
            return jnp.mean(a * b, axis=tuple(range(1 if path.startswith("blocks/") else 0, a.ndim)))

        layers = {path: mean(unit[path], jnp.roll(unit[path], 1, axis=0), path) for path in layered}
        return layers, {f"{a} and {b}": mean(unit[a], unit[b], a) for a, b in pairs}

    layers, of_pairs = processes.whole(jax.jit(correlations)(bench.params))
    for what, found in [*((f"layers of {path}", value) for path, value in layers.items()), *of_pairs.items()]:
        leaf = matrices[what.removeprefix("layers of ").split(" ")[0]]
        limit = DEVIATIONS * (leaf.size // np.size(found)) ** -0.5
        if (worst := float(np.abs(found).max())) > limit:
            return Probe(name, False, f"{what} drawn apart, a correlation within {limit:.2g}", f"{worst:.2g}")
    return Probe(name, True, "layers and matrices drawn apart", f"{len(layers) + len(of_pairs)} pairs are")


INITIAL: tuple[Callable[[Bench], Probe], ...] = (initial_loss, initial_weights, apart)
"""The probes of a new run."""
