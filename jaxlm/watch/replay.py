"""Which equation made the first non-finite value: a function is run again, equation by equation, on the values that it had.

The function is traced, and its jaxpr interpreted (`jaxlm.watch.program`): loops pass by pass, branches as they are taken, and
`shard_map` shard by shard, all on one device, the first of the process. An equation is an origin where a result is not finite
and no operand was: an infinity that stands in the program, for a mask, is an operand and no origin, and what a softmax makes
of it is none either. What is not finite is followed to the results, so that an infinity that something swallows is told from
one that spoils the step.

A compiled step fuses what is run apart here, and sums in another order on a mesh: a value at the edge of its dtype can be
infinite there and finite here. That the replay finds nothing is a result of its own, "not reproduced".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxlm.model.spec import named_leaves
from jaxlm.watch import jaxpr as jaxprs
from jaxlm.watch.interpreter import Interpreter, Value, Where
from jaxlm.watch.origin import Origin
from jaxlm.watch.program import program_of
from jaxlm.watch.values import Range, range_of


class Argument(NamedTuple):
    """An argument that was not finite to begin with. path: `state/params/embed`."""

    path: str
    values: Range


class Replay(NamedTuple):
    """What a replay found. origins: in the order of execution, each equation once; arguments and results: those not finite.

    equations: how many were run. Among those that read a NaN no origin is looked for: what they make comes of it.
    """

    origins: tuple[Origin, ...]
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    equations: int

    @property
    def first(self) -> Origin | None:
        """The first equation that made a non-finite value, whatever became of it; None where none did."""
        return self.origins[0] if self.origins else None

    @property
    def origin(self) -> Origin | None:
        """The equation to look at: the first whose values reached the results; the first of all where none did."""
        return next((origin for origin in self.origins if origin.reached), self.first)

    @property
    def nan(self) -> Origin | None:
        """Where the first NaN was born that reached the results; the first of all where none did."""
        born = [origin for origin in self.origins if origin.kind == "nan"]
        return next((origin for origin in born if origin.reached), born[0] if born else None)

    def words(self, *, sought: bool = True) -> str:
        """A paragraph for the terminal. sought: whether something that is not finite was to be found, as the run had it."""
        lines = [f"argument {argument.path} is not finite: {argument.values.words()}" for argument in self.arguments]
        shown = [] if self.origin is None else [self.origin]
        shown += [] if self.nan is None or self.nan == self.origin else [self.nan]
        lines += [origin.words() for origin in shown]
        if len(self.origins) > len(shown):
            lines.append(f"{len(self.origins) - len(shown)} more equations made non-finite values")
        if not self.origins and not self.arguments:
            lines.append(
                f"{'not reproduced: ' if sought else ''}all values of {self.equations} equations, run one by one, are finite"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and objects; `origin` and `nan` are indices into `origins`."""
        return {
            "origins": [origin.as_json() for origin in self.origins],
            "origin": None if self.origin is None else self.origins.index(self.origin),
            "nan": None if self.nan is None else self.origins.index(self.nan),
            "arguments": [
                {"path": argument.path, **argument.values._asdict(), "shape": list(argument.values.shape)}
                for argument in self.arguments
            ],
            "results": list(self.results),
            "equations": self.equations,
        }


def replay(function: Callable, *args: Any, layer_scan: str | None = None) -> Replay:
    """Run `function(*args)` again, equation by equation, and say where non-finite values came from.

    Under a mesh it is traced as it was, and run on whole arrays. args: pytrees of arrays that this process holds whole; they
    are not donated. layer_scan: the name of the function that calls `jax.lax.scan` over the layers, by which loops are told
    apart. Raises NotImplementedError for a program that writes to mutable arrays, or has a collective that some shards skip.
    """
    jaxpr, shape = jaxprs.traced(function, *args)
    names = [name for index, value in enumerate(args) for name in named_leaves({_parameter(function, index): value})]
    with jaxprs.without_mesh():
        values = [Value.of([jaxprs.on_one_device(leaf)]) for leaf in jax.tree.leaves(args)]
        arguments = [
            Argument(name, range_of(value.shards[0])) for name, value in zip(names, values, strict=True) if value.kinds[0]
        ]
        run = Interpreter(layer_scan)
        results = run.program(program_of(jaxpr), values, Where((), [{}], {}))
    reached = frozenset().union(*(result.origins for result in results))
    origins = [origin._replace(reached=index in reached) for index, origin in enumerate(run.origins)]
    bad = [name for name, value in zip(named_leaves({"result": shape}), results, strict=True) if any(value.kinds)]
    return Replay(tuple(origins), tuple(arguments), tuple(bad), run.equations)


def _parameter(function: Callable, index: int) -> str:
    """The name of a function's parameter; its number where it has no name of its own."""
    parameters = list(inspect.signature(function).parameters.values())
    named = index < len(parameters) and parameters[index].kind is not inspect.Parameter.VAR_POSITIONAL
    return parameters[index].name if named else str(index)
