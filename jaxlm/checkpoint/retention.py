"""Which checkpoints stay: the newest and the best."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jaxlm.contract import ContractError


def steps_to_keep(metrics: Mapping[int, float | None], *, keep_last: int, keep_best: int, always: int) -> set[int]:
    """The steps that stay on the disk: the `keep_last` newest, the `keep_best` with the lowest metric, and `always`.

    metrics: durable step -> metric, lower is better, None where none was measured. Of equal metrics the older step wins.
    always: the step known to be good, which stays even where newer ones (that may be damaged) fill `keep_last`.
    """
    newest = sorted(metrics)[len(metrics) - min(keep_last, len(metrics)) :]
    measured = sorted((metric, step) for step, metric in metrics.items() if metric is not None)
    return {*newest, *(step for _, step in measured[:keep_best]), always}


def require_kept(
    metrics: Mapping[int, float | None], kept: Collection[int], *, keep_last: int, keep_best: int, always: int, artifact: object
) -> None:
    """Raise ContractError where other steps than the newest and the best are to stay: what is removed is lost, and what stays
    in the place of the best one is taken for it.

    kept: those that are to stay of the durable ones; the rest is as of `steps_to_keep`, apart from which each step is counted
    by itself: it stays where fewer than `keep_last` are newer, or fewer than `keep_best` are better.
    """
    for step, metric in sorted(metrics.items()):
        measured = {other: value for other, value in metrics.items() if value is not None}
        newer = sum(other > step for other in metrics)
        better = sum((value, other) < (metric, step) for other, value in measured.items()) if metric is not None else keep_best
        stays = step == always or newer < keep_last or better < keep_best
        if stays != (step in kept):
            loss = "without a loss" if metric is None else f"loss {metric:.6g}"
            raise ContractError(
                "checkpoint",
                artifact=artifact,
                expected=f"the newest {keep_last} and the best {keep_best} to stay, and so step {step} "
                f"to {'stay' if stays else 'go'}, {newer} newer, {better} better, {loss}",
                found=f"it among those that {'go' if stays else 'stay'}",
                remedy="Nothing was removed, and the new checkpoint is saved. Retention chooses otherwise than "
                "--checkpoint.keep-last and --checkpoint.keep-best say: use another version of jaxlm, and resume.",
            )
