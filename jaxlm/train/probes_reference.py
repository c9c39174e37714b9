"""The probe of the model against its specification: what trains computes what the config says, and nothing near it.

Axes: B batch, T position, D model, V vocabulary, L layer.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxlm.config.schema import ModelConfig, RunConfig
from jaxlm.data import Batch
from jaxlm.model import Params, param_specs
from jaxlm.model.reference import document_logits
from jaxlm.model.spec import ParamSpec, named_leaves
from jaxlm.parallel import processes
from jaxlm.parallel.rules import sharding
from jaxlm.train.probes import Bench, Probe
from jaxlm.train.state import even_length, put_batch, rules
from jaxlm.train.step import batch_logits

ROWS, READ = 22, 11  # rows of the small vocabulary, and how many of them are tokens of the batch; the others are only predicted
LEAST, MOST = 24, 256  # positions of a row
PRODUCTS = 1e10  # multiplications of weights that the positions of a row may cost: in float64, about a second
DOCUMENTS = 6  # of a row: the first, which is long, and short ones
CAP, WINDOW = 2.0, 5  # a cap of scores and a window that so few positions can show
SIZES = {"wq": 1.2, "wk": 1.2, "wv": 1.0, "wo": 2.0, "w_gate": 1.5, "w_up": 1.5, "w_down": 1.5}  # times inputs**-0.5
UNNORMED = 0.6  # of these, where activations are not normed and grow from layer to layer


def reference(bench: Bench) -> Probe:
    """Logits of one document in a row, and of six in another, = those of each alone by `jaxlm.model.reference`, in float64.

    Of the run's config and parameters: the first layer and the last, and 22 rows of the embedding and the head, so that a
    model of any size costs no more than two of its layers at 24 positions (at 8e9 parameters 1.7 GB, some seconds), and one
    small compilation. Smaller models are followed further out, to the end of their context or to position 255. What a fault
    changes shall stand out, and rounding not, whatever the training made of the parameters: every matrix is scaled to a size
    at which scores, activations and both branches are of order one; gains and biases are random; tokens have a mean that is
    not 0, and some are so small that `norm_eps` is half of their mean square; a cap of the scores and a window are as small
    as these scores and rows. The parameters are rounded to the run's precision for both sides.
    """
    cfg = _small(bench.cfg)
    held, specs = _cut(bench, cfg), named_leaves(param_specs(cfg.model))
    if others := sorted(held.keys() ^ specs.keys()):
        return Probe("reference", False, "the leaves that the config specifies", f"{', '.join(others[:4])} otherwise")
    leaves = _leaves(held, specs, cfg, bench.rng)
    batch, documents = _batch(bench, cfg, sum(leaf.size for leaf in leaves.values()))
    exact_BTV = np.stack([np.concatenate([document_logits(leaves, cfg.model, ids) for ids in row]) for row in documents])
    placed = {
        name: processes.put(leaf, sharding(bench.mesh, rules(cfg).weight(specs[name].dims))) for name, leaf in leaves.items()
    }
    params = jax.tree.unflatten(jax.tree.structure(bench.params), placed.values())
    logits = jax.jit(lambda p, b: batch_logits(p, b, cfg)[0])(params, put_batch(batch, cfg, bench.mesh))
    found_BTV = processes.whole(logits)[:, :, :ROWS].astype(np.float64)
    error, allowed = _error(found_BTV, np.tile(exact_BTV, (bench.shards, 1, 1))), bench.tolerance
    expected = f"the logits that the config specifies, computed in float64, to {allowed:g}"
    return Probe("reference", bool(error <= allowed), expected, f"off by {error:.2g}")


def _error(found_BTV: np.ndarray, exact_BTV: np.ndarray) -> float:
    """The largest error of a position, as a share of the logits: root mean squares over the ids that are no tokens here."""
    found_BTV, exact_BTV = found_BTV[..., READ:], exact_BTV[..., READ:]
    off_BT = np.sqrt(np.square(found_BTV - exact_BTV).mean(axis=-1))
    return float((off_BT / np.sqrt(np.square(exact_BTV).mean())).max())


def _small(cfg: RunConfig) -> RunConfig:
    """The config of two layers and few ids; all else is the run's but for a cap of scores and a window beyond what shows."""
    model = cfg.model
    multiple = math.lcm(8, cfg.mesh.size)  # however the vocabulary is sharded
    small = dataclasses.replace(
        model,
        n_layers=min(2, model.n_layers),
        vocab_size=ROWS,
        vocab_multiple=multiple,
        attention_softcap=min(model.attention_softcap, CAP),
        window=min(model.window, WINDOW),
    )
    return dataclasses.replace(cfg, model=small)


def _batch(bench: Bench, cfg: RunConfig, weights: int) -> tuple[Batch, list[list[np.ndarray]]]:
    """Two rows for every shard, the same ones: one document, and several. And the ids of each, by row. weights: of the small
    model."""
    length = even_length(min(max(LEAST, min(MOST, int(PRODUCTS / weights))), cfg.model.context_length), cfg)
    ids = np.random.default_rng(1).integers(READ, size=length, dtype=np.int32)
    ids[:READ] = np.arange(READ)[:length] * 3 % READ  # every token, the small ones among the others
    borders = np.linspace(max(1, length * 5 // 8), length, DOCUMENTS).astype(int)[:-1]
    at, rows, documents = np.arange(length), [], []
    for begins in (np.zeros(1, int), np.unique(np.append(0, borders))):
        segments = np.searchsorted(begins, at, side="right").astype(np.int32)
        positions = (at - begins[segments - 1]).astype(np.int32)
        rows.append((ids, np.roll(ids, -1), segments == 1, segments, positions))
        documents.append(np.split(ids, begins[1:]))
    return Batch(*(np.tile(np.stack(pair), (bench.shards, 1)) for pair in zip(*rows, strict=True))), documents


def _cut(bench: Bench, cfg: RunConfig) -> dict[str, np.ndarray]:
    """Of the run's parameters what the small model holds, by path: layers and rows of tables, float32."""
    rows = np.linspace(0, bench.cfg.model.vocab_size - 1, ROWS).astype(np.int32)
    layers = (slice(0, 1), slice(-1, None))[: cfg.model.n_layers]

    def of_table(table_VD: jax.Array | None) -> jax.Array | None:
        if table_VD is None:
            return None
        return table_VD.at[rows].get(out_sharding=PartitionSpec(None, None))

    def cut(params: Params) -> Params:
        blocks = jax.tree.map(lambda leaf: jnp.concatenate([leaf[at] for at in layers]), params.blocks)
        return dataclasses.replace(params, blocks=blocks, embed=of_table(params.embed), head=of_table(params.head))

    return {name: np.array(leaf) for name, leaf in named_leaves(processes.whole(jax.jit(cut)(bench.params))).items()}


def _leaves(
    held: dict[str, np.ndarray], specs: dict[str, ParamSpec], cfg: RunConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The small model's parameters by path, float32, in the order of the tree; those that are cast to the compute dtype are
    of values that it has."""
    dtype, made = jnp.dtype(cfg.train.precision), {}
    for name, leaf in held.items():
        spec = specs[name]
        made[name] = _visible(name.split("/")[-1], leaf, spec, cfg.model, rng).astype(np.float32)
        if len(spec.dims.removeprefix("L")) > 1:
            made[name] = made[name].astype(dtype).astype(np.float32)
    return made


def _visible(name: str, leaf: np.ndarray, spec: ParamSpec, cfg: ModelConfig, rng: np.random.Generator) -> np.ndarray:
    """A leaf at the size at which a fault in its use shows."""
    if spec.init == "zeros":
        return 0.5 * rng.standard_normal(spec.shape)
    if spec.init == "ones":
        gain = 1.0 + 0.3 * rng.standard_normal(spec.shape)
        if name in ("q_norm", "k_norm"):
            return SIZES["wq"] * gain
        if cfg.logit_softcap and name == ("mlp_norm" if cfg.norm == "post" else "final_norm"):
            gain[-1:] *= cfg.logit_softcap * cfg.d_model**-0.5  # of the last layer, or all: logits as large as the cap
        return gain
    if spec.dims == "VD":
        return _table(name, leaf, spec, cfg, rng)
    inputs = math.prod(spec.shape[1:-1]) if name in ("wo", "w_down") else spec.shape[1]
    size = SIZES[name] * (UNNORMED if cfg.norm == "none" else 1.0)
    return _scaled(leaf, axes=None, rng=rng) * size * inputs**-0.5


def _table(name: str, leaf: np.ndarray, spec: ParamSpec, cfg: ModelConfig, rng: np.random.Generator) -> np.ndarray:
    """Rows of the embedding or the head: those of tokens that are read with a mean, and a third of them very small."""
    table_VD = np.zeros(spec.shape, np.float32)
    mixed_VD = _scaled(leaf, axes=-1, rng=rng) + rng.standard_normal(leaf.shape)  # apart, however alike training made them
    table_VD[:ROWS] = mixed_VD * 0.5**0.5
    if name == "embed":
        table_VD[:READ] += 0.6
        table_VD[:READ:3] *= max(cfg.norm_eps, 1e-8) ** 0.5
    return table_VD


def _scaled(leaf: np.ndarray, *, axes: int | None, rng: np.random.Generator) -> np.ndarray:
    """`leaf` with a root mean square of 1 (along `axes`); drawn where it has none."""
    size = np.sqrt(np.square(leaf, dtype=np.float64).mean(axis=axes, keepdims=True)).astype(np.float32)
    if (size == 0).any():
        leaf, size = np.where(size == 0, rng.standard_normal(leaf.shape, np.float32), leaf), np.where(size == 0, 1.0, size)
    return leaf / size
