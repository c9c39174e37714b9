"""The probe of dropout: how much is dropped, and by what the rest is scaled.

Axes: B batch, T position, D model.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.data import Batch
from jaxlm.model import Mask, Params, hidden, param_specs
from jaxlm.model.spec import ParamSpec, is_spec
from jaxlm.parallel import processes
from jaxlm.parallel.rules import sharding
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.state import policy, put_batch, rules

LAYERS = 2
LOUD = 100.0  # times its usual size: what a branch adds outweighs its input, which half precision would round it to
DEVIATIONS = 6.0  # of a binomial share
SCALED = 5e-3  # relative error of a scale: 1 - rate is rounded to the compute dtype


def dropout_rate(bench: Bench) -> Probe:
    """Of what attention and the feed-forward add, the config's share is dropped, and the rest is divided by the share kept.

    Seen in two small layers without norms, of which one adds what one branch makes to its input: with a key, and without. What
    is dropped in one place says nothing about what is dropped in another.
    """
    name, rate = "dropout_rate", bench.cfg.model.dropout
    if not rate:
        return Probe(name, True, "no dropout", "no dropout")
    cfg = _small(bench.cfg)
    batch = bench.random_batch()
    batch = put_batch(batch._replace(tokens=batch.tokens % cfg.model.vocab_size), cfg, bench.mesh)
    rng = bench.rng

    def draw(spec: ParamSpec) -> jax.Array:
        """Not by `init_params`, which takes the compiler longer than all else here."""
        values = (
            spec.std * rng.standard_normal(spec.shape) if spec.init == "normal" else np.full(spec.shape, spec.init == "ones")
        )
        return processes.put(values.astype(np.float32), sharding(bench.mesh, rules(cfg).weight(spec.dims)))

    params = jax.tree.map(draw, param_specs(cfg.model), is_leaf=is_spec)
    last = jax.jit(functools.partial(_last, cfg=cfg))  # its own, traced anew
    expected = f"{1 - rate:.4g} kept, times {1 / (1 - rate):.4g}"
    masks: dict[str, np.ndarray] = {}
    for writer, words in (("wo", "attention"), ("w_down", "the feed-forward")):
        for layer in range(LAYERS):
            kept_BTD, scale = _seen(last, _of_one_branch(params, writer, layer), batch)
            share = float(kept_BTD.mean())
            if _unlikely(share, 1 - rate, kept_BTD.size) or not abs(scale * (1 - rate) - 1) <= SCALED:
                return Probe(name, False, f"of {words} {expected}", f"{share:.4g} kept, times {scale:.4g}")
            masks[f"{words} in layer {layer}"] = kept_BTD
    for (one, first), (other, second) in itertools.combinations(masks.items(), 2):
        both = float((first & second).mean())
        if _unlikely(both, (1 - rate) ** 2, first.size):
            why = f"{(1 - rate) ** 2:.4g} kept of {one} and of {other}, which are drawn apart"
            return Probe(name, False, why, f"{both:.4g}")
    return Probe(name, True, expected, "so of attention and the feed-forward, drawn apart in every layer")


def _unlikely(share: float, expected: float, draws: int) -> bool:
    return abs(share - expected) > DEVIATIONS * math.sqrt(expected * (1 - expected) / draws) + 1e-3


def _small(cfg: RunConfig) -> RunConfig:
    """The config of small layers that add to their input, and norm nothing; dropout, precision and mesh are the run's."""
    even = math.lcm(64, cfg.mesh.size)
    model = dataclasses.replace(cfg.model, d_model=even, d_ff=even, vocab_size=even, head_dim=4, n_layers=LAYERS)
    model = dataclasses.replace(model, norm="none", residual=True, init_std=1.0)
    return dataclasses.replace(cfg, model=model)


def _of_one_branch(params: Params, writer: str, layer: int) -> Params:
    """`params` in which the branch that ends in `writer` is loud in one layer, and all else adds nothing."""
    blocks = params.blocks

    def loud(name: str) -> jax.Array:
        leaf = getattr(blocks, name)
        factors = np.zeros((LAYERS, *(1 for _ in leaf.shape[1:])), np.float32)
        factors[layer] = LOUD if name == writer else 0.0
        return leaf * factors

    return dataclasses.replace(params, blocks=dataclasses.replace(blocks, **{name: loud(name) for name in ("wo", "w_down")}))


def _last(params: Params, batch: Batch, key: jax.Array | None, cfg: RunConfig) -> jax.Array:
    """The last activations, [B, T, D]."""
    mask = Mask.packed(batch.segments, batch.positions, window=cfg.model.window)
    return hidden(params, batch.tokens, cfg.model, mask, dropout_key=key, policy=policy(cfg), rules=rules(cfg))[0]


def _seen(last: Callable, params: Params, batch: Batch) -> tuple[np.ndarray, float]:
    """Where the branch added something in spite of dropout, bool [B, T, D], and how much larger it is there than without."""
    silent = dataclasses.replace(params, blocks=jax.tree.map(jnp.zeros_like, params.blocks))
    outputs = last(params, batch, jax.random.key(0)), last(params, batch, None), last(silent, batch, None)
    dropped, whole, alone = (processes.whole(x).astype(np.float64) for x in outputs)
    kept, added = dropped != alone, whole - alone
    return kept, float(((dropped - alone) * np.sign(added))[kept].sum() / max(np.abs(added[kept]).sum(), 1e-9))
