"""Every configuration of the Hopper kernels lowers to Mosaic GPU for an H200, which none of it needs: shared memory suffices,
operands have layouts that products take."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("Mosaic GPU kernels need jax 0.11", allow_module_level=True)

from pallas_kernels import tuning
from pallas_kernels.hopper import Blocks, Tiling, tiling_for
from pallas_kernels.hopper.backward import backward
from pallas_kernels.hopper.decode import decode
from pallas_kernels.hopper.forward import forward
from tests.pallas_kernels.operands import H200, made_for

B, T, S, N, K, P, M = 2, 300, 401, 6, 2, 9, 4

# Every row of the table with every dtype that it is for, of which one with a cap.
CONFIGURATIONS = [
    pytest.param(
        row,
        dtype,
        softcap,
        id=f"{row.width}-{row.length}-{dtype}-{softcap}",
        marks=pytest.mark.slow if (dtype == "float16") != bool(softcap) else (),
    )
    for row, dtype, softcap in itertools.product(tuning.rows("hopper"), ("bfloat16", "float16"), (0.0, 20.0))
    if row.dtype in ("", dtype)
]


def tiling_of(row):
    return Tiling(**{way: Blocks(*numbers) for way, numbers in row.tiles.items()})


def lowered(function, *arguments):
    with made_for(H200):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def shapes(H, dtype):
    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return functools.partial(jax.ShapeDtypeStruct, dtype=dtype), floats, integers


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize(("row", "dtype", "softcap"), CONFIGURATIONS)
def test_forward_lowers(row, dtype, softcap, statistics):
    H = row.width
    x, _, i = shapes(H, dtype)
    options = {"scale": H**-0.5, "softcap": softcap, "tiling": tiling_of(row), "statistics": statistics}
    arguments = x((B, T, N, H)), x((B, S, K, H)), x((B, S, K, H)), i((B, T)), i((B, T))
    assert lowered(functools.partial(forward, **options), *arguments).count("mosaic_gpu") >= 1


@pytest.mark.parametrize(("row", "dtype", "softcap"), CONFIGURATIONS)
def test_backward_lowers(row, dtype, softcap):
    H = row.width
    x, f, i = shapes(H, dtype)
    options = {"scale": H**-0.5, "softcap": softcap, "tiling": tiling_of(row)}
    arguments = (
        x((B, T, N, H)),
        x((B, S, K, H)),
        x((B, S, K, H)),
        i((B, T)),
        i((B, T)),
        f((B, T, N)),
        f((B, T, N)),
        x((B, T, N, H)),
    )
    assert lowered(functools.partial(backward, **options), *arguments).count("mosaic_gpu") >= 2


@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize(("row", "dtype", "softcap"), CONFIGURATIONS)
def test_decode_lowers(row, dtype, softcap, page):
    H = row.width
    x, _, i = shapes(H, dtype)
    arguments = x((B, N, H)), x((P, page, K, H)), x((P, page, K, H)), i((B, M)), i((B,)), i((B,))
    assert "mosaic_gpu" in lowered(functools.partial(decode, scale=H**-0.5, softcap=softcap), *arguments)


def test_other_widths_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="pad the heads"):
        tiling_for(96, jnp.bfloat16, 1)
    with pytest.raises(ValueError, match="found float32"):
        tiling_for(64, jnp.float32, 1)
