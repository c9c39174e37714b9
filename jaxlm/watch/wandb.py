"""A run in Weights & Biases, by its own package: the extra `wandb`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from jaxlm.contract import InputError
from jaxlm.watch.figures import scalars


class WandbSink:
    """A sink that logs to Weights & Biases.

    directory: where the package keeps its files. name: of the run. config: shown beside it, plain JSON values. run_id: the
    same for every process of one run, so that one which is resumed goes on in the same curves. mode: `offline` writes
    files only, which `wandb sync` sends later; nothing leaves the machine. tokens_per_step, layers_every: as for
    TensorBoard. Raises InputError where the package is not installed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str,
        config: Mapping[str, Any],
        run_id: str,
        tokens_per_step: int,
        project: str = "jaxlm",
        mode: Literal["offline", "online"] = "offline",
        layers_every: int = 20,
    ):
        try:
            import wandb
        except ImportError:
            raise InputError("--watch.wandb: expected the package wandb, found none; `pip install 'jaxlm[wandb]'`") from None
        self._tokens, self._layers_every = tokens_per_step, layers_every
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            config=dict(config),
            dir=os.fspath(directory),
            mode=mode,
            resume="allow",
            settings={"console": "off"},  # what is printed stays where it is printed
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Log `scalars` at their step."""
        self._run.log(scalars(record, layers_every=self._layers_every), step=record["step"])

    def event(self, record: Mapping[str, Any]) -> None:
        """Log the speed, and each alarm as a 1 under its detector's name."""
        kind = record["event"]
        if kind == "pace" and record["seconds"] > 0:
            rate = record["steps"] * self._tokens / record["seconds"]
            self._run.log({"tokens_per_second": rate, "waited": record["waited"] / record["seconds"]}, step=record["step"])
        elif kind == "alarm":
            self._run.log({f"alarm/{record['detector']}": 1}, step=record["step"])

    def close(self) -> None:
        """Send or write what is left."""
        self._run.finish()
