"""Everything that one training step reads and writes, as one pytree.

What is not in here (or in the batch) cannot change a number: a checkpoint of the state is a checkpoint of the run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.checkpoint.environment import environment
from jaxlm.config.schema import RunConfig
from jaxlm.model import POLICIES, LossScale, Params, Policy, attention_used, init_params, param_specs
from jaxlm.model.spec import named_leaves
from jaxlm.optim import optimizer_of
from jaxlm.parallel import AxisRules, processes, rules_of
from jaxlm.parallel.rules import sharding


@struct.dataclass
class TrainState:
    """step: int32 [], steps done. key: the PRNG key of the run; step n draws from fold_in(key, n). skipped: int32 [], steps
    skipped in a row. cfg is static: it is part of the compiled program, not of the saved arrays."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    loss_scale: LossScale
    skipped: jax.Array
    cfg: RunConfig = struct.field(pytree_node=False)

    @classmethod
    def create(cls, cfg: RunConfig) -> TrainState:
        """The state before the first step, on the default device (or, under `jax.set_mesh`, wherever the caller puts it)."""
        init_key, run_key = jax.random.split(jax.random.key(cfg.train.seed))
        params = init_params(cfg.model, init_key)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer(cfg).init(params),
            key=run_key,
            loss_scale=LossScale.create(policy(cfg)),
            skipped=jnp.zeros((), jnp.int32),
            cfg=cfg,
        )


def optimizer(cfg: RunConfig) -> optax.GradientTransformation:
    """The optimizer of a run."""
    return optimizer_of(cfg.optim, cfg.train.steps)


def policy(cfg: RunConfig) -> Policy:
    """The dtypes of a run."""
    return dataclasses.replace(POLICIES[cfg.train.precision], loss_scaling=cfg.train.loss_scaling)


def rules(cfg: RunConfig) -> AxisRules:
    """The axis rules of a run."""
    return rules_of(cfg.mesh, cfg.model.kv_heads)


def environment_of(cfg: RunConfig, mesh: Mesh, *, grad_accum: int) -> dict[str, Any]:
    """What equal bits depend on, of a program of this run on `mesh` with so many micro-batches: see `jaxlm.checkpoint`."""
    with jax.set_mesh(mesh):
        attention = attention_used(cfg.model, policy(cfg))
    shape = dict(mesh.shape)
    return environment(mesh_shape=shape, grad_accum=grad_accum, precision=cfg.train.precision, attention=attention)


def abstract_state(cfg: RunConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state on `mesh`, without arrays: what a checkpoint is compared with.

    A moment lies where its parameter lies, told by the end of its name; everything else is whole on every device.
    """
    shapes = jax.eval_shape(lambda: TrainState.create(cfg))
    layouts = {name: rules(cfg).weight(spec.dims) for name, spec in named_leaves(param_specs(cfg.model)).items()}

    def place(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = next((spec for param, spec in layouts.items() if f"/{name}".endswith(f"/{param}")), P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(mesh, layout))

    placed = [place(name, leaf) for name, leaf in named_leaves(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), placed)


def initial_state(cfg: RunConfig, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out on `mesh`. Every leaf is made where it will lie."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(cfg, mesh))
    return jax.jit(lambda: TrainState.create(cfg), out_shardings=shardings)()


def put_batch(batch: Any, cfg: RunConfig, mesh: Mesh, *, rows: np.ndarray | None = None) -> Any:
    """A batch of NumPy arrays [B, T] on the devices of `mesh`, laid out by the rules.

    Every process gives the same whole batch; or, with `rows`, only these rows of a training batch, those of `batch_rows`.
    """
    layout = NamedSharding(mesh, rules(cfg).activation("BT"))
    length = cfg.train.batch_size
    return jax.tree.map(lambda array: processes.put(array, layout, rows=rows, length=length), batch)


def even_length(length: int, cfg: RunConfig) -> int:
    """The most positions of a row, `length` or fewer, that the mesh axis `context` divides; one for each of its devices at
    least."""
    context = cfg.mesh.context
    return max(1, length // context) * context


def batch_rows(cfg: RunConfig, mesh: Mesh) -> np.ndarray | None:
    """The rows of a training batch that this process reads, ascending; None for all, where it is the only process."""
    if not processes.several():
        return None
    layout = NamedSharding(mesh, rules(cfg).activation("BT"))
    return processes.rows_needed(layout, (cfg.train.batch_size, cfg.model.context_length))
