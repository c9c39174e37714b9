"""A small state with a leaf of every kind, and its shapes."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoint import CheckpointStore, saving


@struct.dataclass
class Moments:
    """A dataclass of jax trees, one field of which may be None."""

    mu: Any
    nu: Any = None


def made_state(seed: int = 0, *, odd: bool = True) -> dict[str, Any]:
    """Leaves that differ from seed to seed. odd: with names and sizes that are rare."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    state = {
        "params": {"wq": normal(4, 6), "norm": normal(6).astype(jnp.bfloat16), "half": normal(3).astype(jnp.float16)},
        "opt": (Moments(mu=normal(4, 6)), None, [jnp.int32(seed + 3)]),
        "key": jax.random.key(seed),
        "sharded": place(normal(8, 4), "data", "tensor"),
        "replicated": place(normal(4)),
    }
    if odd:
        state["odd"] = {
            "ü *?/\n..%2E~": jnp.asarray(rng.integers(-99, 99, 5), jnp.int8),
            "n" * 500: jnp.asarray(rng.integers(0, 2, (2, 3)), bool),
            "": jnp.asarray(rng.integers(0, 2**32, 3, np.uint32)),
            "empty": jnp.zeros((0, 7), jnp.bfloat16),
            "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
            "numpy": rng.normal(size=3),
            "minus zero": jnp.float32([-0.0, 1e-42]),
        }
    return state


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings without data; NumPy arrays stay NumPy arrays."""
    return jax.tree.map(
        lambda x: (
            np.zeros_like(x) if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        ),
        tree,
    )


def bits(leaf: Any) -> tuple[Any, ...]:
    """Everything of a leaf that must come back."""
    data = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return str(leaf.dtype), tuple(leaf.shape), np.asarray(data).tobytes()


def assert_equal_bits(found: Any, wanted: Any) -> None:
    """Same structure, and every leaf the same in dtype, shape and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert bits(a) == bits(b), path


def save(store: CheckpointStore, tree: Any, step: int, **given: Any) -> None:
    """`store.save`, with no facts and no parents where the test needs none."""
    store.save(tree, step, **{"facts": {}, "parents": {}, **given})


@pytest.fixture(scope="module")
def state():
    """The state of seed 0."""
    return made_state()


@pytest.fixture(params=["mounted", "pretended"])
def full_disk(request, tmp_path, monkeypatch):
    """A store with step 1 on a disk too small for the third: (store, state of step 1, a state too big, what is there).

    A small tmpfs where this process may mount one, and a writer that says what a full disk says in any case.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mounted = request.param == "mounted" and _mount(place)
    state, big = made_state(odd=False), {"x": jnp.zeros(1 << 21)}
    write = saving.write_arrays

    def full(directory, arrays):
        write(directory, dict(list(arrays.items())[:1]))
        if sum(array.nbytes for array in arrays.values()) > 1 << 20:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    try:
        store = CheckpointStore(place / "checkpoints", keep_last=9)
        save(store, state, 1)
        store.wait()
        if not mounted:
            monkeypatch.setattr(saving, "write_arrays", full)
        yield store, state, big, lambda: sorted(p.name for p in (place / "checkpoints").iterdir())
        store._writer.shutdown()
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def _mount(place: Path) -> bool:
    try:
        return (
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode == 0
        )
    except OSError:
        return False
