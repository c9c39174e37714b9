"""A jaxpr as a list of steps that can be run one by one: calls are written out, loops and branches are programs of their own.

Equations between two of these make a segment, which is compiled as one with a single bit more as its result: whether all that
any of its equations made is finite. The bits of intermediate values of one shape are joined before they are summed up, so that
they cost little to compile and to compute. Only a segment whose bit says no is looked at equation by equation: what something
swallows within a segment is seen as well, and a replay compiles little more than the step itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.watch import jaxpr as jaxprs
from jaxlm.watch.jaxpr import Frame
from jaxlm.watch.values import kinds_of

SEGMENT = 128  # equations that are compiled as one, at most: the time to compile grows faster than their number
# What fuses may keep more digits than the dtype between two operations, in which an overflow disappears. Programs run once or
# as often as there are layers: machine code is not worth optimising.
_OPTIONS: dict[str, Any] = {"xla_allow_excess_precision": False, "xla_backend_optimization_level": 0}

_COLLECTIVES = {
    "psum", "psum_invariant", "unreduced_psum", "pmax", "pmin", "unreduced_pmax", "unreduced_pmin", "all_gather",
    "all_gather_invariant", "all_gather_reduced", "reduce_scatter", "unreduced_reduce_scatter", "ppermute", "all_to_all",
    "axis_index",
}  # fmt: skip


class Place(NamedTuple):
    """Where an equation stands. scopes: as `jaxpr.scopes`, from the outermost function on."""

    primitive: str
    frames: tuple[Frame, ...]
    scopes: tuple[tuple[str, bool], ...]


class Equation(NamedTuple):
    """One equation of a segment: operands and results are slots of the program."""

    place: Place
    bind: Callable[..., list[Any]]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Step(NamedTuple):
    """One step. kind: "segment", "scan", "while", "cond", "shard_map", "collective"; frees: slots that nothing reads later.

    equations: of a segment; params: of the equation otherwise. check: a function of the operands of a segment, which gives its
    results and whether any equation made a value that is not finite; detail: one that gives all slots that its equations
    write.
    """

    kind: str
    place: Place
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    params: dict[str, Any]
    programs: tuple[Program, ...] = ()
    equations: tuple[Equation, ...] = ()
    check: Callable[..., tuple[list[Any], jax.Array]] | None = None
    detail: Callable[..., dict[int, Any]] | None = None
    frees: tuple[int, ...] = ()


class Constant(NamedTuple):
    """A value that stands in the program. kinds: as `values.kinds_of`."""

    value: Any
    kinds: int


class Program(NamedTuple):
    """Slots of arguments, of results, and of what is constant; and the steps."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Constant]
    steps: tuple[Step, ...]


def program_of(jaxpr: Any, place: Place = Place("", (), ())) -> Program:
    """The steps of a jaxpr. place: of the equation that holds it, whose lines stand in for those that an equation lacks."""
    return _Writer().program(jaxpr, place)


class _Writer:
    """Writes the steps of one program; slots are numbered as they come."""

    def __init__(self) -> None:
        self.constants: dict[int, Constant] = {}
        self.steps: list[Step] = []
        self.pending: list[Equation] = []
        self.slots = 0

    def slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def constant(self, value: Any) -> int:
        slot = self.slot()
        self.constants[slot] = Constant(value, kinds_of(value))
        return slot

    def program(self, jaxpr: Any, place: Place) -> Program:
        inputs = tuple(self.slot() for _ in jaxprs.opened(jaxpr).inputs)
        outputs = tuple(self.inline(jaxpr, inputs, place))
        self.close()
        return Program(inputs, outputs, self.constants, _finished(self.steps, outputs, self.constants))

    def inline(self, jaxpr: Any, operands: Sequence[int], place: Place) -> list[int]:
        """The steps of `jaxpr` on slots; gives the slots of its results."""
        opened = jaxprs.opened(jaxpr)
        known = dict(zip(opened.inputs, operands, strict=True))
        known |= {variable: self.constant(jaxprs.on_one_device(value)) for variable, value in opened.constants}

        def read(atom: Any) -> int:
            value = jaxprs.literal(atom)
            return known[atom] if value is None else self.constant(value)

        for equation in opened.equations:
            if not equation.outvars:  # a callback, for its effect on the host
                continue
            reads = [read(atom) for atom in equation.invars]
            here = Place(
                equation.primitive.name, jaxprs.frames(equation) or place.frames, place.scopes + jaxprs.scopes(equation)
            )
            known |= dict(zip(equation.outvars, self.equation(equation, reads, here), strict=True))
        return [read(atom) for atom in opened.outputs]

    def equation(self, equation: Any, reads: list[int], place: Place) -> Sequence[int]:
        name, params = equation.primitive.name, equation.params
        _refuse_references(equation, place)
        if (inner := jaxprs.called(equation)) is not None:
            return self.inline(inner, reads, place)
        if name in jaxprs.IDENTITIES:
            return reads
        if name == "scan":
            told = jaxprs.scanned(equation)
            return self.step(
                "scan",
                equation,
                reads,
                place,
                {"scanned": told, "empty": [v.aval for v in equation.outvars[told.carry :]]},
                told.body,
            )
        if name == "while":
            sizes = {"condition": params["cond_nconsts"], "body": params["body_nconsts"]}
            return self.step("while", equation, reads, place, sizes, params["cond_jaxpr"], params["body_jaxpr"])
        if name == "cond":
            return self.step("cond", equation, reads, place, {}, *params["branches"])
        if name == "shard_map":
            specs = {"axes": jaxprs.manual_axes(equation), "into": params["in_specs"], "out": params["out_specs"]}
            return self.step("shard_map", equation, reads, place, specs, params["jaxpr"])
        if name in _COLLECTIVES:
            return self.step("collective", equation, reads, place, dict(params))
        writes = tuple(self.slot() for _ in equation.outvars)
        self.pending.append(Equation(place, jaxprs.binding(equation), tuple(reads), writes))
        if len(self.pending) == SEGMENT:
            self.close()
        return writes

    def step(self, kind: str, equation: Any, reads: list[int], place: Place, params: dict, *inner: Any) -> tuple[int, ...]:
        self.close()
        writes = tuple(self.slot() for _ in equation.outvars)
        programs = tuple(program_of(jaxpr, place) for jaxpr in inner)
        self.steps.append(Step(kind, place, tuple(reads), writes, params, programs))
        return writes

    def close(self) -> None:
        """End the segment."""
        if not self.pending:
            return
        equations, self.pending = tuple(self.pending), []
        writes = tuple(slot for equation in equations for slot in equation.writes)
        constants = {slot: self.constants[slot].value for e in equations for slot in e.reads if self._written(slot)}
        known = {*writes, *constants}
        reads = tuple(dict.fromkeys(slot for equation in equations for slot in equation.reads if slot not in known))
        run = functools.partial(_run, equations, reads, constants)
        self.steps.append(Step("segment", equations[0].place, reads, writes, {}, equations=equations, detail=run))

    def _written(self, slot: int) -> bool:
        """Whether the slot is a number that is written into the program, and no array that is handed to it."""
        return slot in self.constants and isinstance(self.constants[slot].value, np.ndarray)


def _refuse_references(equation: Any, place: Place) -> None:
    if any(hasattr(getattr(atom, "aval", None), "inner_aval") for atom in (*equation.invars, *equation.outvars)):
        line = f"{place.frames[0].file}:{place.frames[0].line}" if place.frames else "unknown"
        raise NotImplementedError(f"replay: expected pure equations, found {place.primitive} on a mutable array ({line})")


def _run(equations: Sequence[Equation], reads: Sequence[int], constants: Mapping[int, Any], *operands: Any) -> dict[int, Any]:
    """Every slot that the equations of a segment write, given the slots `reads`."""
    known = {slot: jnp.asarray(value) for slot, value in constants.items()} | dict(zip(reads, operands, strict=True))
    made: dict[int, Any] = {}
    for equation in equations:
        results = equation.bind(*(made[slot] if slot in made else known[slot] for slot in equation.reads))
        made |= dict(zip(equation.writes, results, strict=True))
    return made


def _checked(run: Callable[..., dict[int, Any]], writes: Sequence[int], *operands: Any) -> tuple[list[Any], jax.Array]:
    made = run(*operands)
    bad: dict[tuple[int, ...], jax.Array] = {}
    for array in made.values():
        if jnp.issubdtype(array.dtype, jnp.inexact):
            here = ~jnp.isfinite(array)
            bad[array.shape] = bad[array.shape] | here if array.shape in bad else here
    found = jnp.zeros((), bool)
    for array in bad.values():
        found = found | jnp.any(array)
    return [made[slot] for slot in writes], found


def _finished(steps: Sequence[Step], outputs: Sequence[int], constants: Iterable[int]) -> tuple[Step, ...]:
    """The steps, each with the slots that nothing reads after it; segments compiled, with the results that something reads."""
    alive, found = {*outputs, *constants}, []
    for step in reversed(steps):
        if step.detail is not None:
            writes = tuple(slot for slot in step.writes if slot in alive)
            check = jax.jit(functools.partial(_checked, step.detail, writes), compiler_options=_OPTIONS)
            step = step._replace(writes=writes, check=check, detail=jax.jit(step.detail, compiler_options=_OPTIONS))
        touched = {*step.reads, *step.writes}
        found.append(step._replace(frees=tuple(touched - alive)))
        alive |= touched
    return tuple(reversed(found))
