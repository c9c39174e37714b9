"""Which checkpoints stay: the newest and the best."""

from __future__ import annotations

from collections.abc import Mapping


def steps_to_keep(metrics: Mapping[int, float | None], *, keep_last: int, keep_best: int, always: int) -> set[int]:
    """The steps that stay on the disk: the `keep_last` newest, the `keep_best` with the lowest metric, and `always`.

    metrics: durable step -> metric, lower is better, None where none was measured. Of equal metrics the older step wins.
    always: the step known to be good, which stays even where newer ones (that may be damaged) fill `keep_last`.
    """
    newest = sorted(metrics)[len(metrics) - min(keep_last, len(metrics)) :]
    measured = sorted((metric, step) for step, metric in metrics.items() if metric is not None)
    return {*newest, *(step for _, step in measured[:keep_best]), always}
