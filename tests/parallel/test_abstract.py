"""A mesh without devices has the axes and sizes of the one with."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import MeshConfig
from jaxlm.parallel import make_mesh
from jaxlm.parallel.abstract import abstract_mesh, laid_out, traced_on


def test_the_abstract_mesh_is_that_of_the_real_one():
    cfg = MeshConfig(data=2, fsdp=2, tensor=2, rules="fsdp_tp")
    made, real = abstract_mesh(cfg), make_mesh(cfg)
    assert (made.shape, made.axis_types) == (real.shape, real.axis_types)


def test_what_is_traced_on_it_is_laid_out_on_it():
    with traced_on(MeshConfig(data=4, rules="dp")) as mesh:
        x = laid_out(mesh, (8, 3), "float32", P("data", None))
        traced = jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(x)
    (out,) = traced.jaxpr.outvars
    assert out.aval.sharding.shard_shape(out.aval.shape) == (2, 3)
    assert jax.sharding.get_abstract_mesh().empty
