"""A fault is there inside its block, from its step on, and gone afterwards."""

import dataclasses
import math

import numpy as np
import pytest

import jaxlm.data.split
from jaxlm.contract import ContractError
from jaxlm.faults import Fault, Patch, Tampered
from jaxlm.faults.clean import Clean, clean_run
from jaxlm.faults.ground import Ground
from jaxlm.faults.leaves import all_changed, changed, flipped, layer, rounded, times
from jaxlm.faults.planting import _Steps, patched, planted
from jaxlm.faults.summary import as_json, rows, totals
from jaxlm.faults.trial import Seen, Trial, _right

SPLIT = Patch("jaxlm.data.split:split_of", lambda real: lambda text, share: "val")


def fault(**fields):
    texts = {"mechanism": "It is so.", "symptom": "None.", "incident": "here"}
    return Fault(**{"name": "one", "layer": "data", **texts, "plant": (SPLIT,), "seen_by": ("data",), **fields})


def test_a_patch_is_undone_whatever_happens(tmp_path):
    real = jaxlm.data.split.split_of
    found = []

    def fails():
        with planted(fault(), tmp_path):
            found.append(jaxlm.data.split.split_of("text", 0.0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert found == ["val"]
    assert jaxlm.data.split.split_of is real


def test_methods_and_class_methods_are_patched_and_undone():
    class Held:
        @classmethod
        def make(cls):
            return cls.__name__

    globals()["Held"] = Held
    target = f"{__name__}:Held.make"
    with patched([Patch(target, lambda real: classmethod(lambda cls: "other"))]):
        assert Held.make() == "other"
    assert Held.make() == "Held"


def test_a_target_that_there_is_not_is_an_error():
    with pytest.raises(AttributeError), patched([Patch("jaxlm.data.split:nothing", lambda real: real)]):
        pass


def test_an_artifact_is_changed_once_and_not_for_a_replay(tmp_path):
    one = fault(plant=(Tampered(lambda path: (path / "touched").write_text("")),))
    with planted(one, tmp_path, replayed=True):
        assert not (tmp_path / "touched").exists()
    with planted(one, tmp_path):
        assert (tmp_path / "touched").exists()


@dataclasses.dataclass
class State:
    step: int


@pytest.mark.parametrize(("once", "expected"), [(True, [0, 0, 1, 0, 0]), (False, [0, 0, 1, 1, 1])])
def test_a_disturbance_begins_at_its_step(once, expected):
    from jaxlm.faults import Disturbed

    change = Disturbed(lambda state, batch, step: (state, batch + 1), once=once)
    steps = _Steps(lambda state, batch: batch, 3, [], [change])
    assert [steps(State(done), 0) for done in range(5)] == expected


def test_leaves_are_changed_on_the_host():
    import jax.numpy as jnp

    tree = {"blocks": {"w": jnp.ones((2, 3))}, "embed": jnp.zeros(4)}
    found = changed(tree, w=layer(1, times(3.0)))
    np.testing.assert_array_equal(found["blocks"]["w"], [[1, 1, 1], [3, 3, 3]])
    np.testing.assert_array_equal(tree["blocks"]["w"], np.ones((2, 3)))
    np.testing.assert_array_equal(all_changed(tree, lambda a: a + 1)["embed"], np.ones(4))
    with pytest.raises(KeyError):
        changed(tree, nothing=times(1.0))


def test_rounding_and_flipping_are_what_they_say():
    import ml_dtypes

    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(rounded(values), values.astype(ml_dtypes.bfloat16).astype(np.float32))
    again = flipped(flipped(values.copy(), 30, 5), 30, 5)
    np.testing.assert_array_equal(again, values)
    assert (flipped(values.copy(), 0, 5) != values).sum() == 1


# ---- clean runs --------------------------------------------------------------------------------------------------------


def test_a_clean_run_that_is_refused_counts_and_stops_nothing(tmp_path, monkeypatch):
    def refused(cfg, path):
        raise ContractError("probe causality", artifact=path, expected="a", found="b", remedy="c")

    monkeypatch.setattr("jaxlm.faults.clean.quiet_fit", refused)
    found = clean_run("small", 3, tmp_path)
    assert found == Clean("small", 3, 0, [], ["probe causality"])
    assert "probe causality broken" in found.words()


def test_the_clean_run_beside_a_fault_has_its_config_and_is_trained_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("jaxlm.faults.ground.quiet_fit", lambda cfg, path: trained.append(cfg))
    monkeypatch.setattr("jaxlm.faults.ground.Run.load", lambda path: None)
    monkeypatch.setattr("jaxlm.faults.ground.true_loss", lambda run, clean: 1.5)
    monkeypatch.setattr("jaxlm.faults.ground.losses", lambda run: [2.0, 1.5])
    ground = Ground(tmp_path, 0)
    (tmp_path / "ground-0.json").write_text('{"loss": 1.0, "losses": []}')
    assert ground.clean({"data.prefetch": 0}) == ground.facts()
    for _ in range(2):
        assert ground.clean({"model.window": 12}) == {"loss": 1.5, "losses": [2.0, 1.5]}
    assert ground.clean({"model.window": 13})["loss"] == 1.5
    assert [cfg.model.window for cfg in trained] == [12, 13]


# ---- what counts as seen, and the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "right"),
    [
        (None, False),
        (Seen("data", "open", None, ""), True),
        (Seen("batch", "open", None, ""), False),
        (Seen("data", "step", 10, ""), True),
        (Seen("data", "step", 12, ""), True),
        (Seen("data", "step", 13, ""), False),
        (Seen("data", "step", 9, ""), False),
    ],
    ids=["by nothing", "before the first step", "by another", "at once", "in time", "too late", "before it was there"],
)
def test_seen_in_time_and_by_the_right_one(seen, right):
    assert _right(fault(at=10, within=2), seen) is right


@pytest.mark.parametrize(
    ("layer", "operation", "right"), [(1, "mul", True), (2, "mul", False), (1, "add", False), (None, "mul", False)]
)
def test_a_fault_with_a_place_is_seen_there(layer, operation, right):
    one = fault(at=10, layer_index=1, operation="mul")
    assert _right(one, Seen("data", "step", 10, "", layer, operation)) is right


def test_the_table_its_totals_and_the_json():
    good, blind = fault(at=10, within=2), fault(name="two", seen_by=(), unseen="there is one copy")
    late = fault(name="three")
    trials = [
        Trial("one", 0, Seen("data", "step", 12, "words", 1, "mul"), True, {"nan_loss": 11}, 0.5, [1.0]),
        Trial("one", 1, Seen("data", "step", 11, "words", 1, "mul"), True, {"six_sigma": 3}, math.inf),
        Trial("two", 0, None, False),
        Trial("three", 0, None, False, refused="no"),
    ]
    found = rows([good, blind, late], trials)
    assert found[0].cells() == ("one", "data", "data", "+2 steps", "layer 1, mul", "lost", "nan_loss")
    assert found[1].cells()[2:4] == ("nothing can", "never")
    assert found[2].cells()[2:4] == ("nothing (0/1)", "never")
    lines = totals(found, [Clean("small", 0, 500, [], []), Clean("deep", 1, 500, [["grad_norm", 7]], [])])
    assert lines[0].startswith("1 of 2 faults detected")
    assert "  not so: three: nothing, never (expected data)" in lines
    assert "  no detector can see two: there is one copy" in lines
    assert any("1 false alarms in 2 runs of 1,000 steps together; 100.00 in 1e5 steps" in line for line in lines)
    assert as_json(found)[1]["damage"] == "inf"
    assert as_json(found)[0]["operation"] == "mul"
    assert as_json(found)[2]["detected"] is False
