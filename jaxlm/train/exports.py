"""Where a run's figures go beside its own logs, as `watch` asks: TensorBoard, Weights & Biases, Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from jaxlm.config.schema import RunConfig
from jaxlm.contract import plain
from jaxlm.parallel import processes
from jaxlm.run import Layout
from jaxlm.watch.figures import Sink


def sinks_of(cfg: RunConfig, layout: Layout, *, step: int, durable: Callable[[], int | None]) -> list[Sink]:
    """The sinks of a run that has done `step` steps; none in a process that does not write its logs.

    durable: the newest step on the disk. Raises InputError for a package that is not installed, or a port that is taken.
    """
    watch, sinks, tokens = cfg.watch, list[Sink](), cfg.tokens_per_step
    if not processes.primary():
        return sinks
    if watch.tensorboard:
        from jaxlm.watch.tensorboard import TensorBoardSink

        sinks.append(TensorBoardSink(layout.path / "tensorboard", step=step, tokens_per_step=tokens))
    if watch.wandb != "off":
        from jaxlm.watch.wandb import WandbSink

        name = layout.path.resolve().name
        sinks.append(
            WandbSink(layout.path, name=name, config=plain(cfg), run_id=name, tokens_per_step=tokens, mode=watch.wandb)
        )
    if watch.metrics_port:
        from jaxlm.watch.prometheus import PrometheusSink

        sinks.append(PrometheusSink(watch.metrics_port, run=cfg.name, tokens_per_step=tokens, durable=durable))
    return sinks
