"""Runs the steps of a program on concrete values, and notes every equation that makes a non-finite one of finite ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.watch import shards as sharded
from jaxlm.watch.origin import Loop, Origin, layer_of
from jaxlm.watch.program import Place, Program, Step
from jaxlm.watch.shards import Position
from jaxlm.watch.values import NAN, kinds_of, range_of, values_of

# Of these, an element of the result depends on the elements at its place alone, so that a new one is seen beside old ones.
_ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "rem", "pow", "integer_pow", "square", "max", "min", "exp", "exp2", "expm1", "log",
    "log1p", "sqrt", "rsqrt", "cbrt", "tanh", "logistic", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "atan2",
    "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma", "digamma", "neg", "abs", "convert_element_type",
    "one_minus_square",
}  # fmt: skip

_AGAIN = "rematted_computation"  # the scope under which jax repeats a forward pass
_UNNAMED = {"", "checkpoint", _AGAIN}


class Value(NamedTuple):
    """An array on every shard that runs (outside of `shard_map` there is one). kinds: NAN and INF bits of each; origins: the
    numbers of those equations that its non-finite elements come from."""

    shards: list[Any]
    kinds: list[int]
    origins: frozenset[int] = frozenset()

    @classmethod
    def of(cls, arrays: Sequence[Any], origins: frozenset[int] = frozenset(), suspects: Sequence[Any] | None = None) -> Value:
        """Of arrays, of which those are looked at whose entry in `suspects` is true; the others are known to be finite."""
        kinds = [kinds_of(a) if suspects is None or suspects[n] else 0 for n, a in enumerate(arrays)]
        return cls(list(arrays), kinds, origins if any(kinds) else frozenset())

    def take(self, shards: Sequence[int]) -> Value:
        """The value on some of the shards."""
        return Value([self.shards[s] for s in shards], [self.kinds[s] for s in shards], self.origins)


class Where(NamedTuple):
    """The loops that run, the positions of the shards that do, and the sizes of the mesh axes."""

    loops: tuple[Loop, ...]
    positions: list[Position]
    axes: dict[str, int]

    def inside(self, kind: str, index: int, length: int | None, place: Place) -> Where:
        """Within one pass of a loop."""
        function = place.frames[0].function.split(".")[-1] if place.frames else ""
        return self._replace(loops=(*self.loops, Loop(kind, index, length, function)))

    def of(self, shards: Sequence[int]) -> Where:
        """On some of the shards."""
        return self._replace(positions=[self.positions[shard] for shard in shards])


class Interpreter:
    """One run. origins: what was found so far, in order; equations: how many were run."""

    def __init__(self, layer_scan: str | None) -> None:
        self.origins: list[Origin] = []
        self.equations = 0
        self._layer_scan = layer_scan
        self._numbers: dict[tuple[int, str], int] = {}

    def program(self, program: Program, arguments: Sequence[Value], where: Where) -> list[Value]:
        """The results of a program on the shards at `where`."""
        shards = len(where.positions)
        known = dict(zip(program.inputs, arguments, strict=True))
        for slot, constant in program.constants.items():
            known[slot] = Value([constant.value] * shards, [constant.kinds] * shards)
        for step in program.steps:
            operands = [known[slot] for slot in step.reads]
            if step.kind == "segment":
                results = self._segment(step, operands, known, where)
            else:
                results = _STEPS[step.kind](self, step, operands, where)
            known |= dict(zip(step.writes, results, strict=True))
            for slot in step.frees:
                del known[slot]
        return [known[slot] for slot in program.outputs]

    # ---- equations -----------------------------------------------------------------------------------------------

    def _segment(self, step: Step, operands: list[Value], known: dict[int, Value], where: Where) -> list[Value]:
        assert step.check is not None
        assert step.detail is not None
        runs = [step.check(*arrays) for arrays in zip(*(value.shards for value in operands), strict=True)]
        runs = runs or [step.check() for _ in where.positions]
        self.equations += len(step.equations)
        suspects = [bool(bad) for _, bad in runs]
        origins = frozenset().union(*(value.origins for value in operands))
        if not any(suspects) or any(kinds & NAN for value in operands for kinds in value.kinds):
            # What comes after a NaN comes of it.
            return [Value.of([made[n] for made, _ in runs], origins, suspects) for n in range(len(step.writes))]
        details = [step.detail(*arrays) for arrays in zip(*(value.shards for value in operands), strict=True)]
        details = details or [step.detail() for _ in where.positions]
        seen = dict(known)
        for equation in step.equations:
            results = [([made[slot] for made in details], suspects) for slot in equation.writes]
            read = [seen[slot] for slot in equation.reads]
            seen |= dict(zip(equation.writes, self._made(equation, read, results, where), strict=True))
        return [seen[slot] for slot in step.writes]

    def _made(self, source: Any, operands: list[Value], results: list[tuple[list, Any]], where: Where) -> list[Value]:
        """The results of an equation (or a collective) as values. source: what has its place; results: arrays on every shard,
        and which of them may be not finite."""
        values = [Value.of(arrays, suspects=suspects) for arrays, suspects in results]
        if not any(any(value.kinds) for value in values):
            return values
        origins = frozenset().union(*(operand.origins for operand in operands))
        for shard, position in enumerate(where.positions):
            for output, value in enumerate(values):
                born = _born(source.place.primitive, operands, value, shard)
                if born is not None:
                    here = (where.loops, position or None)
                    origins |= {self._note(source, *born, output, operands, values, shard, *here)}
        return [value._replace(origins=origins) if any(value.kinds) else value for value in values]

    def _note(
        self,
        source: Any,
        kind: str,
        new: np.ndarray,
        output: int,
        operands: list[Value],
        values: list[Value],
        shard: int,
        loops: tuple[Loop, ...],
        position: Position | None,
    ) -> int:
        """The number of the origin, which is made where the equation has none of this kind."""
        key = (id(source), kind)
        if key not in self._numbers:
            place = source.place
            names = [name for name, transform in place.scopes if not transform]
            scope = "/".join(name for name in names if name not in _UNNAMED)
            self._numbers[key] = len(self.origins)
            self.origins.append(
                Origin(
                    primitive=place.primitive,
                    kind=kind,
                    frames=place.frames,
                    scope=scope,
                    direction="backward" if ("transpose", True) in place.scopes else "forward",
                    again=_AGAIN in names,
                    loops=loops,
                    layer=layer_of(loops, scope, self._layer_scan),
                    shard=position,
                    inputs=tuple(range_of(operand.shards[shard]) for operand in operands),
                    outputs=tuple(
                        range_of(value.shards[shard]) for value in [values[output], *values[:output], *values[output + 1 :]]
                    ),
                    at=tuple(int(index) for index in np.argwhere(new)[0]),
                )
            )
        return self._numbers[key]

    # ---- control -------------------------------------------------------------------------------------------------

    def _scan(self, step: Step, operands: list[Value], where: Where) -> list[Value]:
        told, (body,) = step.params["scanned"], step.programs
        first, shards = told.constants + told.carry, range(len(where.positions))
        constants, carry, whole = operands[: told.constants], operands[told.constants : first], operands[first:]
        passes: list[list[Value]] = [[] for _ in range(told.length)]
        for index in reversed(range(told.length)) if told.reverse else range(told.length):
            slices = [_taken([value.shards[shard] for value in whole], index) for shard in shards]
            scanned = [Value.of([made[n] for made in slices], v.origins, v.kinds) for n, v in enumerate(whole)]
            results = self.program(body, [*constants, *carry, *scanned], where.inside("scan", index, told.length, step.place))
            carry, passes[index] = results[: told.carry], results[told.carry :]
        if not passes:
            return [
                *carry,
                *(Value([jnp.zeros(a.shape, a.dtype)] * len(shards), [0] * len(shards)) for a in step.params["empty"]),
            ]
        stacks = [_stacked([[value.shards[shard] for value in made] for made in zip(*passes, strict=True)]) for shard in shards]
        return [
            *carry,
            *(_over_passes([stack[n] for stack in stacks], made) for n, made in enumerate(zip(*passes, strict=True))),
        ]

    def _while(self, step: Step, operands: list[Value], where: Where) -> list[Value]:
        condition, body = step.programs
        first = step.params["condition"]
        last = first + step.params["body"]
        asked, constants, carry = operands[:first], operands[first:last], operands[last:]
        shards, count = list(range(len(where.positions))), 0
        while True:
            here = where.inside("while", count, None, step.place)
            (more,) = self.program(condition, [value.take(shards) for value in (*asked, *carry)], here.of(shards))
            shards = [shard for shard, answer in zip(shards, more.shards, strict=True) if bool(answer)]
            if not shards:
                return carry
            made = self.program(body, [value.take(shards) for value in (*constants, *carry)], here.of(shards))
            carry = [_updated(value, shards, new) for value, new in zip(carry, made, strict=True)]
            count += 1

    def _cond(self, step: Step, operands: list[Value], where: Where) -> list[Value]:
        groups: dict[int, list[int]] = {}
        for shard, index in enumerate(operands[0].shards):
            groups.setdefault(min(max(int(index), 0), len(step.programs) - 1), []).append(shard)
        results: list[Value] = []
        for branch, shards in groups.items():
            made = self.program(step.programs[branch], [value.take(shards) for value in operands[1:]], where.of(shards))
            if not results:  # on the shards of other branches these are replaced
                results = [Value([v.shards[0]] * len(where.positions), [0] * len(where.positions)) for v in made]
            results = [_updated(value, shards, new) for value, new in zip(results, made, strict=True)]
        return results

    # ---- meshes --------------------------------------------------------------------------------------------------

    def _shard_map(self, step: Step, operands: list[Value], where: Where) -> list[Value]:
        axes, (body,) = step.params["axes"], step.programs
        inner = sharded.positions(axes)
        positions = [{**outer, **position} for outer in where.positions for position in inner]
        arguments = []
        for value, spec in zip(operands, step.params["into"], strict=True):
            parts = [sharded.cut(array, spec, position, axes) for array in value.shards for position in inner]
            arguments.append(Value.of(parts, value.origins, [kind for kind in value.kinds for _ in inner]))
        within = Where(where.loops, positions, {**where.axes, **axes})
        results = []
        for value, spec in zip(self.program(body, arguments, within), step.params["out"], strict=True):
            cuts = range(0, len(positions), len(inner))
            wholes = [sharded.join(value.shards[n : n + len(inner)], inner, spec, axes) for n in cuts]
            results.append(Value.of(wholes, value.origins, [any(value.kinds[n : n + len(inner)]) for n in cuts]))
        return results

    def _collective(self, step: Step, operands: list[Value], where: Where) -> list[Value]:
        shards, axes = range(len(where.positions)), sharded.axes_of(step.params)
        groups = sharded.groups(axes, where.positions)
        if any(len(group) != math.prod(where.axes[axis] for axis in axes) for group in groups):
            raise NotImplementedError(
                f"replay: expected {step.place.primitive} on all shards along {axes}, found it in a branch"
            )
        together = [value._replace(kinds=_of_groups(value.kinds, groups)) for value in operands]
        results = []
        for value in operands or [Value([None for _ in shards], [0 for _ in shards])]:
            made = sharded.collective(step.place.primitive, step.params, value.shards, where.positions)
            results.append((made, [True for _ in shards]))
        self.equations += 1
        return self._made(step, together, results, where)


_STEPS = {
    "scan": Interpreter._scan,
    "while": Interpreter._while,
    "cond": Interpreter._cond,
    "shard_map": Interpreter._shard_map,
    "collective": Interpreter._collective,
}


def _born(primitive: str, operands: list[Value], value: Value, shard: int) -> tuple[str, np.ndarray] | None:
    """The kind of what is new in a result, and which elements are; None where all came from operands."""
    kinds, given = value.kinds[shard], 0
    for operand in operands:
        given |= operand.kinds[shard]
    made = values_of(value.shards[shard]) if kinds else None
    if made is None:
        return None
    if kinds & NAN and not given & NAN:
        return "nan", np.isnan(made)
    if not given:
        return "inf", np.isinf(made)
    if primitive not in _ELEMENTWISE:
        return None
    arrays = [found for operand in operands if (found := values_of(operand.shards[shard])) is not None]
    new_nan, new = np.isnan(made), ~np.isfinite(made)
    for array in arrays:
        new_nan, new = new_nan & ~np.isnan(array), new & np.isfinite(array)
    return ("nan", new_nan) if new_nan.any() else ("inf", new) if new.any() else None


def _of_groups(kinds: list[int], groups: list[list[int]]) -> list[int]:
    """On every shard the kinds of all shards of its group."""
    found = list(kinds)
    for group in groups:
        bits = 0
        for shard in group:
            bits |= kinds[shard]
        for shard in group:
            found[shard] = bits
    return found


def _updated(value: Value, shards: Sequence[int], new: Value) -> Value:
    """`value` with `new` on some of its shards."""
    arrays, kinds = list(value.shards), list(value.kinds)
    for n, shard in enumerate(shards):
        arrays[shard], kinds[shard] = new.shards[n], new.kinds[n]
    return Value(arrays, kinds, value.origins | new.origins if any(kinds) else frozenset())


def _over_passes(stacks: list[Any], made: Sequence[Value]) -> Value:
    """What the passes of a scan gave, stacked."""
    kinds = [0] * len(stacks)
    for value in made:
        kinds = [mine | its for mine, its in zip(kinds, value.kinds, strict=True)]
    return Value(stacks, kinds, frozenset().union(*(value.origins for value in made)))


@jax.jit
def _taken(arrays: list[Any], index: Any) -> list[Any]:
    return [jax.lax.dynamic_index_in_dim(array, index, 0, keepdims=False) for array in arrays]


@jax.jit
def _stacked(arrays: list[list[Any]]) -> list[Any]:
    return [jnp.stack(passes) for passes in arrays]
