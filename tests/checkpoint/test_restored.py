"""A restored state that was changed on its way into the run is refused, and the leaf is named."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore, require_restored
from jaxlm.contract import ContractError

STATE = {"params": {"w": np.arange(6, dtype=np.float32)}, "count": np.int32(3)}


@pytest.fixture
def manifest(tmp_path):
    with CheckpointStore(tmp_path, asynchronous=False) as store:
        store.save(STATE, 3, facts={}, parents={})
        return store.manifest(3)


def test_the_state_that_was_saved_is_kept(manifest):
    require_restored({"params": {"w": jnp.arange(6, dtype=jnp.float32)}, "count": jnp.int32(3)}, manifest, artifact="run")


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("count", {**STATE, "count": np.int32(0)}),
        ("params/w", {**STATE, "params": {"w": np.zeros(6, np.float32)}}),
        ("params/w", {**STATE, "params": {"w": STATE["params"]["w"].astype(np.float16)}}),
        ("params/w", {**STATE, "params": {"w": np.nextafter(STATE["params"]["w"], 9, dtype=np.float32)}}),
        ("params/w", {"count": np.int32(3)}),
        ("more", {**STATE, "more": np.int32(1)}),
    ],
    ids=["count anew", "zeros", "cast", "one bit", "left out", "added"],
)
def test_another_state_is_refused_and_the_leaf_named(name, state, manifest):
    with pytest.raises(ContractError, match=rf"contract 'restored' is broken at run: .* found another in {name}"):
        require_restored(state, manifest, artifact="run")


def test_a_part_is_compared_with_that_part(manifest):
    require_restored({"w": STATE["params"]["w"]}, manifest, artifact="run", below="params")
    with pytest.raises(ContractError, match="found another in params/w"):
        require_restored({"w": STATE["params"]["w"][::-1]}, manifest, artifact="run", below="params")
