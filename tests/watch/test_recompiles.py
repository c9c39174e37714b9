"""Programs that are compiled once more, and what is said of them."""

import threading
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxlm.config.schema import OptimConfig, RunConfig
from jaxlm.watch.recompiles import (
    RecompilationError,
    Recompilations,
    RecompilationWarning,
    changes,
    compilations,
    no_recompilation,
    signature,
)


@struct.dataclass
class State:
    """Weights, and a config that is part of the program."""

    weights: jax.Array
    cfg: RunConfig = struct.field(pytree_node=False)


class Batch(NamedTuple):
    """Tokens."""

    tokens: np.ndarray


def fresh():
    """A function that nothing has compiled yet."""

    def double(state, batch):
        return state.weights * 2 + batch.tokens.sum()

    return jax.jit(double)


def state(weights=np.ones(4, np.float32), **optim):
    return State(weights, RunConfig(optim=OptimConfig(**optim)))


TOKENS = Batch(np.zeros((4, 8), np.int32))


def run(phases, function, *calls):
    """The lines of each call of `function` in the phase `step`."""
    found = []
    for args in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with phases.phase("step", state=args[0], batch=args[1]) as lines:
                function(*args)
        assert [str(w.message) for w in caught if w.category is RecompilationWarning] == lines
        found.append(lines)
    return found


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ((state(), Batch(TOKENS.tokens[:3])), "batch/tokens was int32[4,8], is int32[3,8]"),
        ((state(), Batch(TOKENS.tokens.astype(np.int16))), "batch/tokens was int32[4,8], is int16[4,8]"),
        ((state(lr=0.5), TOKENS), "state/cfg.optim.lr was 0.001, is 0.5"),
    ],
)
def test_what_changed_is_named_and_what_is_warm_says_nothing(second, why):
    lines = run(Recompilations(), fresh(), (state(), TOKENS), (state(), TOKENS), second, second, (state(), TOKENS))
    assert [len(each) for each in lines] == [0, 0, 1, 0, 0]
    assert lines[2][0].startswith("recompiled after warm-up: jit(double) in step, ")
    assert lines[2][0].endswith(f"s: {why}")


def test_another_layout_is_named():
    first, second = (state(jax.device_put(np.ones(4, np.float32), device)) for device in jax.devices()[:2])
    lines = run(Recompilations(), fresh(), (first, TOKENS), (second, TOKENS))
    assert "state/weights was float32[4] SingleDeviceSharding(device=CpuDevice(id=0)" in lines[1][0]
    assert "is float32[4] SingleDeviceSharding(device=CpuDevice(id=1)" in lines[1][0]


def test_a_function_that_is_made_anew_each_step_is_noticed():
    phases = Recompilations()
    lines = [run(phases, fresh(), (state(), TOKENS)) for _ in range(2)]
    assert lines[0] == [[]]
    assert "its arguments are those of before, so it is a new function or a setting" in lines[1][0][0]


def test_each_phase_warms_up_for_itself():
    phases, function = Recompilations(), fresh()
    run(phases, function, (state(), TOKENS))
    with warnings.catch_warnings(), phases.phase("validation", batch=TOKENS) as lines:
        warnings.simplefilter("error")
        function(state(), Batch(TOKENS.tokens[:2]))
    assert lines == []


def test_the_warning_is_an_error_in_the_tests_of_this_project(request):
    phases, function = Recompilations(), fresh()
    with phases.phase("step"):
        function(state(), TOKENS)
    with pytest.raises(RecompilationWarning, match="jit\\(double\\) in step"), phases.phase("step"):
        function(state(), Batch(TOKENS.tokens[:1]))


def test_donated_arguments_are_described_after_their_call():
    function = jax.jit(lambda x: x * 2, donate_argnums=0)
    phases = Recompilations()
    for n, found in ((3, 0), (3, 0), (5, 1)):
        x = jnp.ones(n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with phases.phase("step", x=x) as lines:
                function(x)
        assert x.is_deleted()
        assert len(lines) == found
    assert "x was float32[3]" in lines[0]


def test_a_setting_is_part_of_a_signature():
    with jax.default_matmul_precision("highest"):
        now = signature(x=1)
    assert changes(signature(x=1), now) == ["setting jax_default_matmul_precision was None, is highest"]
    assert changes(signature(x=1), signature(x=2)) == []  # a Python number is an argument, not a part of the program
    many = {f"a{i}": "1" for i in range(9)}
    assert changes(many, {})[4:] == ["a4 was 1, is absent", "and 4 more"]


def test_another_thread_is_not_listened_to():
    with compilations() as found:
        thread = threading.Thread(target=lambda: fresh()(state(), TOKENS))
        thread.start()
        thread.join()
    assert found == []


# ---- the block in which everything is warm -----------------------------------------------------------------------


def test_a_warm_block_passes_and_a_cold_one_names_function_and_argument():
    function = fresh()
    function(state(), TOKENS)
    with no_recompilation():
        function(state(), TOKENS)
    with pytest.raises(RecompilationError, match=r"found compiled: jit\(double\)") as caught, no_recompilation():
        function(state(), Batch(TOKENS.tokens[:, :5]))
    assert "i32[4,5] and before i32[4,8]" in str(caught.value)


def test_an_error_in_the_block_is_that_error():
    def fail():
        fresh()(state(), Batch(TOKENS.tokens[:, :3]))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), no_recompilation():
        fail()
