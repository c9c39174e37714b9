"""Where a non-finite value came from, as a value, as words and as JSON."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.watch.jaxpr import Frame
from jaxlm.watch.values import Range

SHOWN = 4  # operands that words spell out; past them they are counted
_LAYER = re.compile(r"layers?_(\d+)")


class Loop(NamedTuple):
    """One pass of a loop. position: of the slice that it read, whichever way the loop runs. length: None for a `while`.

    function: that which called the loop.
    """

    kind: str
    position: int
    length: int | None
    function: str

    def words(self) -> str:
        """`scan 2 of 0..3 in hidden`."""
        return (
            f"{self.kind} {self.position}"
            + ("" if self.length is None else f" of 0..{self.length - 1}")
            + f" in {self.function}"
        )


class Origin(NamedTuple):
    """An equation that computed a non-finite value from finite ones, or the first NaN from infinities.

    kind: "nan" or "inf" (-inf too). direction: "forward", or "backward" for all that the transposed program does; again:
    whether it is a computation of the forward pass that the backward pass repeats. loops: outermost first. layer: see
    `layer_of`. shard: mesh axes and index, within a `shard_map`. outputs: the non-finite one first; at: the first such element
    of it. reached: whether results of the function are not finite because of it; otherwise something swallowed it.
    """

    primitive: str
    kind: str
    frames: tuple[Frame, ...]
    scope: str
    direction: str
    again: bool
    loops: tuple[Loop, ...]
    layer: int | None
    shard: dict[str, int] | None
    inputs: tuple[Range, ...]
    outputs: tuple[Range, ...]
    at: tuple[int, ...]
    reached: bool = False

    @property
    def file(self) -> str:
        """The file of the innermost line that is not jax's; empty where jax tells none."""
        return self.frames[0].file if self.frames else ""

    @property
    def line(self) -> int:
        """The line in `file`; 0 where jax tells none."""
        return self.frames[0].line if self.frames else 0

    @property
    def function(self) -> str:
        """The function of that line."""
        return self.frames[0].function if self.frames else ""

    def words(self) -> str:
        """A few lines: what, where in the program, where in the source, and the values that went in and came out."""
        where = self.direction + (", computed again" if self.again else "")
        where += "" if self.layer is None else f", layer {self.layer}"
        lines = [f"{self.primitive} made {self.kind} ({where})"]
        lines += [f"  at {shown(frame)}" if n == 0 else f"  from {shown(frame)}" for n, frame in enumerate(self.frames[:3])]
        lines += [f"  scope {self.scope}"] if self.scope else []
        lines += [f"  loop {loop.words()}" for loop in self.loops]
        if self.shard is not None:
            lines.append("  shard " + " ".join(f"{axis}={index}" for axis, index in self.shard.items()))
        lines += [f"  in  {values.words()}" for values in self.inputs[:SHOWN]]
        lines += [f"  and {len(self.inputs) - SHOWN} more operands"] if len(self.inputs) > SHOWN else []
        lines += [f"  out {values.words()}, first at {list(self.at)}" for values in self.outputs[:1]]
        lines.append("  it reached the results" if self.reached else "  it reached no result: something swallowed it")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and objects."""
        return {
            **self._asdict(),
            "file": self.file,
            "line": self.line,
            "function": self.function,
            "frames": [frame._asdict() for frame in self.frames],
            "loops": [loop._asdict() for loop in self.loops],
            "inputs": [{**values._asdict(), "shape": list(values.shape)} for values in self.inputs],
            "outputs": [{**values._asdict(), "shape": list(values.shape)} for values in self.outputs],
            "at": list(self.at),
        }


def shown(frame: Frame) -> str:
    """`jaxlm/model/layers.py:31 (rms_norm)`: the file as seen from here, or from where packages are installed."""
    file = frame.file.split("site-packages" + os.sep)[-1]
    path = Path(file)
    file = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
    return f"{file}:{frame.line} ({frame.function.split('.')[-1]})"


def layer_of(loops: tuple[Loop, ...], scope: str, layer_scan: str | None) -> int | None:
    """The layer: of the innermost `scan` that the function `layer_scan` called, or of a scope `layer_3`.

    Without `layer_scan` it is that of the only scan, if there is one only; None where it cannot be told.
    """
    named = _LAYER.findall(scope)
    if named:
        return int(named[-1])
    scans = [loop for loop in loops if loop.kind == "scan"]
    if layer_scan is not None:
        scans = [loop for loop in scans if loop.function == layer_scan][-1:]
    return scans[0].position if len(scans) == 1 else None
