"""What is on the disk has the norms of its step, or the save is none."""

import ml_dtypes
import numpy as np
import pytest

from jaxlm.checkpoint import CheckpointStore
from jaxlm.checkpoint import store as stores
from jaxlm.checkpoint.norms import require_norms
from jaxlm.checkpoint.saving import SaveError
from jaxlm.contract import ContractError
from jaxlm.watch import leaf_norms

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 40, 50)).astype(np.float32)
STATE = {"params": {"blocks": {"w": W}, "embed": W[0] * 9}, "count": np.int32(3)}


def norms(scale=1.0):
    return {
        "params/blocks/w": np.sqrt(np.square(W.astype(np.float64)).sum((1, 2))) * scale,
        "params/embed": float(np.linalg.norm(W[0].astype(np.float64)) * 9),
    }


def leaves(dtype=np.float32):
    return {"params/blocks/w": W.astype(dtype), "params/embed": (W[0] * 9).astype(dtype), "count": np.int32(3)}


@pytest.mark.parametrize("scale", [1.0, 1 + 1e-5])
def test_the_norms_of_the_step_are_kept_to_the_rounding_of_float32(scale):
    require_norms(leaves(), norms(scale), artifact="run")


@pytest.mark.parametrize(("scale", "place"), [([1, 1 + 1e-4, 1], "[1]"), ([1 - 1e-4, 1, 1], "[0]")])
def test_another_norm_is_refused_with_its_leaf_and_layer(scale, place):
    with pytest.raises(ContractError, match=r"run \(leaf params/blocks/w\[.\]\)") as error:
        require_norms(leaves(), norms(np.array(scale)), artifact="run")
    assert f"params/blocks/w{place}" in str(error.value)


def test_narrow_leaves_and_norms_that_say_nothing():
    narrow = leaves(ml_dtypes.bfloat16)
    wanted = {
        name: np.linalg.norm(narrow[name].astype(np.float64).reshape(*np.shape(n), -1), axis=-1) for name, n in norms().items()
    }
    require_norms(narrow, wanted, artifact="run")
    require_norms(leaves(), {"params/embed": np.inf}, artifact="run")
    require_norms({"x": np.full(8, 1e-25, np.float32)}, {"x": 0.0}, artifact="run")


@pytest.mark.parametrize("shape", [(2, 1), (2, 16_000), (2, 300, 300), (2, 1000, 1000)])
@pytest.mark.parametrize("value", [1.0, 0.1, 0.997, 1.003])
def test_equal_numbers_whose_roundings_all_go_one_way_are_no_other_norm(shape, value):
    equal = np.full(shape, value, np.float32)
    require_norms({"blocks/x": equal}, leaf_norms({"blocks": {"x": equal}}), artifact="run")
    require_norms({"x": equal}, leaf_norms({"x": equal}), artifact="run")


def test_a_save_of_another_state_than_the_steps_is_never_committed(tmp_path):
    with CheckpointStore(tmp_path, asynchronous=False) as store:
        store.save(STATE, 1, facts={}, parents={}, norms=norms())
        with pytest.raises(SaveError, match=r"expected a norm of .* as the step reported it"):
            store.save(STATE, 2, facts={}, parents={}, norms=norms(1.001))
    assert store.committed() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_state_that_the_next_step_overwrites_while_it_is_saved_is_never_committed(tmp_path, monkeypatch):
    real, state = stores.host_leaves, {"params": {"blocks": {"w": W.copy()}, "embed": W[0] * 9}}
    monkeypatch.setattr(stores, "host_leaves", lambda tree: real(tree, copy=False))
    with CheckpointStore(tmp_path) as store:
        submit = store._writer.submit

        def later(*job):
            state["params"]["blocks"]["w"] *= 1.001  # the next step
            return submit(*job)

        monkeypatch.setattr(store._writer, "submit", later)
        store.save(state, 1, facts={}, parents={}, norms=norms())
        with pytest.raises(SaveError, match=r"leaf params/blocks/w\[0\]"):
            store.wait()
    assert store.committed() == []
