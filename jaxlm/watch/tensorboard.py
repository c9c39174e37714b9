"""A run in TensorBoard, by tensorboardX: the extra `tensorboard`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jaxlm.contract import InputError
from jaxlm.watch.figures import scalars


class TensorBoardSink:
    """A sink that writes event files for TensorBoard.

    directory: of the event files. step: steps done when it is opened; what an earlier process wrote beyond them is dropped
    by TensorBoard, since these steps come again. tokens_per_step: positions of a batch, for tokens per second. layers_every:
    steps between figures of single layers and parameters, of which there are hundreds in every record; those of the whole
    are written at every step. Raises InputError where tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], *, step: int = 0, tokens_per_step: int, layers_every: int = 20):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError(
                "--watch.tensorboard: expected the package tensorboardX, found none; `pip install 'jaxlm[tensorboard]'`"
            ) from None
        self._tokens, self._layers_every = tokens_per_step, layers_every
        purge = step + 1 if step else None
        self._writer = SummaryWriter(os.fspath(directory), purge_step=purge, write_to_disk=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """A scalar for each of `scalars`."""
        for name, value in scalars(record, layers_every=self._layers_every).items():
            self._writer.add_scalar(name, value, record["step"])

    def event(self, record: Mapping[str, Any]) -> None:
        """The speed as scalars, alarms and samples as text."""
        kind, step = record["event"], record.get("step", 0)
        if kind == "pace" and record["seconds"] > 0:
            self._writer.add_scalar("tokens_per_second", record["steps"] * self._tokens / record["seconds"], step)
            self._writer.add_scalar("waited", record["waited"] / record["seconds"], step)
        elif kind == "alarm":
            place = "" if record.get("layer") is None else f", layer {record['layer']}"
            words = f"{record.get('what', '')}{place}: expected {record.get('expected')}, found {record.get('found')}"
            self._writer.add_text(f"alarm/{record['detector']}", words, step)
        elif kind == "sample":
            self._writer.add_text("sample", "".join(record["pieces"]), step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
