"""What the replay needs of jax's own insides, in one file: tracing with exact lines, and what an equation says of itself.

Works on jax 0.10 to 0.12, between which closed jaxprs and the parameters of `scan` moved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import source_info_util
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Literal
from jax.sharding import SingleDeviceSharding

FRAMES = 5  # of the stack of an equation, the innermost
_OWN = {__file__, str(Path(__file__).with_name("replay.py"))}  # on the stack of everything that is traced here
_TRACES = itertools.count()

# The parameter that holds what a primitive calls: a function of its operands, whose results are its results.
_CALLED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat_opt": "fwd_jaxpr",
}

# Layouts, names and fences: the results are the operands.
IDENTITIES = {
    "reshard", "sharding_constraint", "mesh_cast", "layout_constraint", "relayout", "device_put", "optimization_barrier",
    "name", "stop_gradient", "pvary", "preduced", "reduced_vary_cast", "reduced_vary_cast_p", "vary_unreduced_cast",
    "vary_unreduced_cast_p",
}  # fmt: skip


class Frame(NamedTuple):
    """A line of Python that led to an equation."""

    file: str
    line: int
    function: str


class Opened(NamedTuple):
    """A jaxpr with its constants. inputs, outputs: variables; constants: those that have a value."""

    inputs: list[Any]
    outputs: list[Any]
    equations: list[Any]
    constants: list[tuple[Any, Any]]


class Scanned(NamedTuple):
    """The parameters of a `scan`: its body takes constants, carry, slices, and gives carry, slices."""

    body: Any
    constants: int
    carry: int
    length: int
    reverse: bool


# ---- tracing -----------------------------------------------------------------------------------------------------


def traced(function: Callable, *args: Any) -> tuple[Any, Any]:
    """The jaxpr of `function(*args)`, every line of it traced anew, and the shapes of its results as a tree."""
    # A setting that no trace was made under yet: what jax remembers of earlier ones would bring their lines.
    with set_xla_metadata(replay=str(next(_TRACES))), _lines_of_rules():
        return jax.make_jaxpr(function, return_shape=True)(*args)


@contextmanager
def _lines_of_rules() -> Iterator[None]:
    """Within it, equations made by the rules of custom_vjp and custom_jvp carry the lines of these rules.

    jax gives all equations of a derivative the line of what is differentiated, which is right for its own rules; of a rule
    that somebody wrote, it is the call. Where the Python stack shows such a rule at work, the stack is taken.
    """
    remembered = source_info_util.current

    def current() -> Any:
        info = remembered()
        here = source_info_util.Traceback.get_traceback()
        return info.replace(traceback=here) if _in_rule(here) else info

    source_info_util.current = current
    try:
        yield
    finally:
        source_info_util.current = remembered


def _in_rule(traceback: Any) -> bool:
    """Whether, from the innermost frame outwards, user code comes first that jax called as the rule of a derivative."""
    user = False
    for code in traceback.raw_frames()[0]:
        if code.co_filename.endswith("custom_derivatives.py") and code.co_name.startswith("_flatten_"):
            return user
        if code.co_filename.endswith(("interpreters/ad.py", "ad_checkpoint.py")):
            return False
        user = user or source_info_util.is_user_filename(code.co_filename)
    return False


def without_mesh() -> Any:
    """A context in which no mesh is set, whatever is set around it."""
    return jax.set_mesh(None)


def on_one_device(array: Any) -> jax.Array:
    """An array, laid out in whatever way, whole on the first device of the process."""
    # As a layout: told the device alone, jax keeps the mesh in the array's type.
    return jax.device_put(array, SingleDeviceSharding(jax.local_devices()[0]))


# ---- jaxprs ------------------------------------------------------------------------------------------------------


def opened(jaxpr: Any) -> Opened:
    """A jaxpr, closed or not."""
    values = list(getattr(jaxpr, "consts", ()))
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    named = list(jaxpr.constvars)
    inputs = [*named[len(values) :], *jaxpr.invars]
    return Opened(inputs, list(jaxpr.outvars), list(jaxpr.eqns), list(zip(named, values, strict=False)))


def literal(atom: Any) -> np.ndarray | None:
    """The value that stands in the equation itself; None for a variable."""
    aval: Any = atom.aval
    return np.asarray(atom.val, aval.dtype) if isinstance(atom, Literal) else None


def called(equation: Any) -> Any:
    """The jaxpr that the equation calls on its operands; None where it is no call."""
    key = _CALLED.get(equation.primitive.name)
    return None if key is None else equation.params[key]


def scanned(equation: Any) -> Scanned:
    """What a `scan` is told."""
    params = equation.params
    if "ft_in" in params:
        operands = params["ft_in"].update(list(range(len(equation.invars)))).unpack()
        constants, carry = len(list(operands[0])), len(list(operands[1]))
    else:
        constants, carry = params["num_consts"], params["num_carry"]
    return Scanned(params["jaxpr"], constants, carry, params["length"], params["reverse"])


def manual_axes(equation: Any) -> dict[str, int]:
    """The mesh axes that a `shard_map` cuts along, with their sizes, in the order of the mesh."""
    params = equation.params
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    return {axis: size for axis, size in params["mesh"].shape.items() if axis in manual}


def binding(equation: Any) -> Callable[..., list[Any]]:
    """A function of operands that gives the results of one equation, laid out on one device."""
    primitive = equation.primitive
    params: Mapping[str, Any] = {
        name: None if name in ("sharding", "out_sharding") else value for name, value in equation.params.items()
    }

    def bind(*operands: Any) -> list[Any]:
        results = primitive.bind(*operands, **primitive.get_bind_params(params))
        return list(results) if primitive.multiple_results else [results]

    return bind


# ---- where an equation stands ------------------------------------------------------------------------------------


def frames(equation: Any) -> tuple[Frame, ...]:
    """The lines that led to an equation, innermost first, without those of jax and of the standard library."""
    found = source_info_util.user_frames(equation.source_info.traceback)
    others = (Frame(frame.file_name, frame.start_line, frame.function_name) for frame in found if frame.file_name not in _OWN)
    return tuple(itertools.islice(others, FRAMES))


def scopes(equation: Any) -> tuple[tuple[str, bool], ...]:
    """The name stack, outermost first: names, and whether each is a transformation (jvp, transpose, vmap) or a scope."""
    stack: Sequence[Any] = equation.source_info.name_stack.stack
    return tuple((entry.name, isinstance(entry, source_info_util.Transform)) for entry in stack)
