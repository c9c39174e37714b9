"""What the layers keep for the backward pass, read from the code itself: the model is traced on a mesh without devices.

A table of tensors written by hand would be true until somebody changes the block. `jax.vjp` under a trace gives the values
that the backward pass is handed, and what each was computed from tells what it is: an activation, where the tokens went into
it; a copy of a weight, where parameters alone did; else something that all layers share, as the ranges of the mask are.

Axes: B batch, T position, L layer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config.schema import MeshConfig, ModelConfig, RunConfig, TrainConfig
from jaxlm.model import POLICIES, Mask, hidden, param_specs
from jaxlm.model.spec import is_spec
from jaxlm.parallel import rules_of
from jaxlm.parallel.abstract import laid_out, traced_on


@dataclass(frozen=True)
class Kept:
    """Bytes on one device that wait for the backward pass.

    activations: of each layer. copies: weights of each layer as they are used, in the compute dtype. once: of the embedding and
    the last norm. narrow: the share of `activations` of less than four bytes a number, 0 to 1.
    """

    activations: int
    copies: int
    once: int
    narrow: float


def kept_of(cfg: RunConfig, remat: str = "") -> Kept:
    """What a micro-batch of `cfg` keeps under its mesh, its rules and a policy of `jaxlm.model.remat` (by default its own).

    Two layers, unrolled, less one. Touches no device: everything is shapes. Kernels of attention keep what XLA's own keeps.
    """
    models = (dataclasses.replace(cfg.model, n_layers=n, scan_layers=False, attention="reference") for n in (1, 2))
    one, two = (_kept(model, cfg.train, cfg.mesh, remat or cfg.train.remat) for model in models)
    layer = {name: two[name] - one[name] for name in one}
    wide = layer["activations"]
    return Kept(
        activations=wide,
        copies=layer["copies"],
        once=max(0, one["activations"] - wide),
        narrow=layer["narrow"] / wide if wide else 0.0,
    )


@functools.lru_cache(maxsize=64)
def _kept(model: ModelConfig, train: TrainConfig, mesh_config: MeshConfig, remat: str) -> dict[str, int]:
    rules, policy = rules_of(mesh_config, model.kv_heads), POLICIES[train.precision]
    rows, length = train.batch_size // train.grad_accum, model.context_length
    with traced_on(mesh_config) as mesh:
        params = jax.tree.map(
            lambda s: laid_out(mesh, s.shape, s.dtype, rules.weight(s.dims)), param_specs(model), is_leaf=is_spec
        )
        ids = laid_out(mesh, (rows, length), "int32", rules.activation("BT"))
        key = jax.eval_shape(lambda: jax.random.key(0)) if model.dropout else None

        def residuals(params: Any, tokens: Any, segments: Any, positions: Any, key: Any) -> list[Any]:
            mask = Mask.packed(segments, positions, window=model.window)

            def last(params: Any) -> Any:
                return hidden(params, tokens, model, mask, policy=policy, rules=rules, dropout_key=key, remat=remat)[0]

            return jax.tree.leaves(jax.vjp(last, params)[1])

        traced = jax.make_jaxpr(residuals)(params, ids, ids, ids, key).jaxpr
    leaves = len(jax.tree.leaves(params))
    weights, tokens = set(traced.invars[:leaves]), {traced.invars[leaves]}
    from_weights, from_tokens = _reached(traced, weights), _reached(traced, tokens)
    # A weight of one layer is read where it lies; one that was laid out for its use is another array, stacked over layers.
    resharded = {value for equation in traced.eqns if equation.primitive.name == "reshard" for value in equation.outvars}
    found = {"activations": 0, "copies": 0, "narrow": 0}
    for value in dict.fromkeys(v for v in traced.outvars if not hasattr(v, "val")):  # kept twice is kept once
        if value in weights or value in tokens or not hasattr(value.aval, "dtype"):
            continue
        size = _bytes_of(value.aval)
        if value in from_tokens:
            found["activations"] += size
            found["narrow"] += size if jnp.dtype(value.aval.dtype).itemsize < 4 else 0
        elif value in from_weights and (value in resharded or jnp.dtype(value.aval.dtype).itemsize < 4):
            found["copies"] += size
    return found


def _reached(traced: Any, roots: set[Any]) -> set[Any]:
    """The values that are computed from `roots`."""
    reached = set(roots)
    for equation in traced.eqns:
        if any(not hasattr(value, "val") and value in reached for value in equation.invars):
            reached.update(equation.outvars)
    return reached


def _bytes_of(aval: Any) -> int:
    """Bytes of one device's part of a value."""
    return math.prod(aval.sharding.shard_shape(aval.shape)) * jnp.dtype(aval.dtype).itemsize
