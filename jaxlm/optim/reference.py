"""The learning rates a second time: NumPy float64, written from what the config's fields say.

The probes and the detectors compare with this. It shares no line with `jaxlm.optim.schedules`, so that a fault there is seen.
"""

from __future__ import annotations

import numpy as np

from jaxlm.config.schema import OptimConfig

# Of a rate, which is a float32; and of the peak: at the end of a decay to 0 a float32 sum of 1 and -1 is left.
RELATIVE, CANCELLED = 1e-4, 1e-6


def learning_rates(cfg: OptimConfig, steps: int, count: np.ndarray) -> np.ndarray:
    """The rate of the update that follows `count` updates, integers below `steps` of any shape: float64.

    From 0 to `lr` along a straight line, reached at the update `warmup_steps`. From there on, or for WSD from the last
    `decay_share` of all steps on, to `min_lr_ratio * lr` at the last update: along half a cosine (Loshchilov & Hutter 2017,
    eq. 5) or a straight line. Updates and steps are counted from `schedule_from` on; before, the rate is that of the first.
    """
    update = np.clip(np.asarray(count, np.float64) - cfg.schedule_from, 0.0, None) + 1.0
    steps -= cfg.schedule_from
    begin = cfg.warmup_steps
    if cfg.schedule == "wsd":
        begin = max(begin, steps - round(cfg.decay_share * steps))
    passed = np.clip((update - begin) / max(steps - begin, 1), 0.0, 1.0)
    height = {
        "cosine": np.cos(np.pi / 2 * passed) ** 2,
        "linear": 1.0 - passed,
        "wsd": 1.0 - passed,
        "constant": np.ones_like(passed),
    }[cfg.schedule]
    rates = cfg.lr * (cfg.min_lr_ratio + (1.0 - cfg.min_lr_ratio) * height)
    return np.where(update < cfg.warmup_steps, cfg.lr * update / max(cfg.warmup_steps, 1), rates)


def same_rate(found: np.typing.ArrayLike, expected: np.typing.ArrayLike, peak: float) -> np.ndarray:
    """Whether float32 rates are the `expected` ones, but for rounding: bool, of the shape of both. A NaN is not.

    peak: the largest rate of the schedule.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.asarray(np.abs(found - expected) <= RELATIVE * np.abs(expected) + CANCELLED * peak)
