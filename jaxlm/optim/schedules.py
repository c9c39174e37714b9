"""Learning rate as a function of the number of updates made: warm-up, then cosine, linear, WSD or constant.

Every schedule takes an int32 count (a scalar, traced or not) and returns float32. `decay_steps` counts the warm-up in, as
in optax: the rate reaches `end_value` at that count and stays there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.config.schema import OptimConfig

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def _check(decay_steps: int, warmup_steps: int) -> None:
    if warmup_steps < 0 or decay_steps <= 0 or warmup_steps > decay_steps:
        raise ValueError(f"expected 0 <= warmup_steps <= decay_steps, found {warmup_steps} and {decay_steps}")


def _after_warmup(
    shape: Callable[[jax.Array], jax.Array],
    peak: float,
    end: float,
    init: float,
    decay_steps: int,
    warmup_steps: int,
    held_until: int = 0,
) -> Schedule:
    """Linear from `init` to `peak`, held until the count `held_until`, then `end + (peak - end) * shape(share of the decay that
    has passed)`."""
    _check(decay_steps, warmup_steps)
    start = max(warmup_steps, held_until)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rising = init + (peak - init) * count / max(warmup_steps, 1)
        share = jnp.clip((count - start) / max(decay_steps - start, 1), 0.0, 1.0)
        return jnp.where(count < warmup_steps, rising, end + (peak - end) * shape(share))

    return schedule


def cosine_schedule(
    peak_value: float, decay_steps: int, warmup_steps: int = 0, *, end_value: float = 0.0, init_value: float = 0.0
) -> Schedule:
    """Half a cosine from peak to end. Source: Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts."""
    return _after_warmup(
        lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share)), peak_value, end_value, init_value, decay_steps, warmup_steps
    )


def linear_schedule(
    peak_value: float, decay_steps: int, warmup_steps: int = 0, *, end_value: float = 0.0, init_value: float = 0.0
) -> Schedule:
    """A straight line from peak to end."""
    return _after_warmup(lambda share: 1.0 - share, peak_value, end_value, init_value, decay_steps, warmup_steps)


def wsd_schedule(
    peak_value: float,
    decay_steps: int,
    warmup_steps: int = 0,
    *,
    decay_share: float = 0.2,
    end_value: float = 0.0,
    init_value: float = 0.0,
) -> Schedule:
    """Warm-up, stable, decay: the peak is held, then falls linearly over the last `decay_share` of `decay_steps`.

    The decay never begins before the warm-up has ended. Source: Hu et al. 2024 (MiniCPM), section 4.2.
    """
    _check(decay_steps, warmup_steps)
    if not 0.0 < decay_share <= 1.0:
        raise ValueError(f"expected a decay_share above 0 and at most 1, found {decay_share}")
    held_until = decay_steps - round(decay_share * decay_steps)
    return _after_warmup(lambda share: 1.0 - share, peak_value, end_value, init_value, decay_steps, warmup_steps, held_until)


def constant_schedule(peak_value: float, warmup_steps: int = 0, *, init_value: float = 0.0) -> Schedule:
    """The peak, after the warm-up."""
    decay_steps = max(warmup_steps, 1)
    return _after_warmup(jnp.ones_like, peak_value, 0.0, init_value, decay_steps, warmup_steps)


def schedule_of(cfg: OptimConfig, steps: int) -> Schedule:
    """The schedule that a config names, over `steps` updates.

    The n-th update (n = 1 ... steps) has the rate at count n, so that the first one is not wasted on a rate of 0 and the
    last one reaches `min_lr_ratio * lr`. With `schedule_from` all of it lies in the updates after so many; those before, if any
    are asked for, have the rate of the first. Source: Loshchilov & Hutter 2017 (SGDR), warm restarts.
    """
    steps = steps - cfg.schedule_from
    end = cfg.min_lr_ratio * cfg.lr
    if cfg.schedule == "cosine":
        schedule = cosine_schedule(cfg.lr, steps, cfg.warmup_steps, end_value=end)
    elif cfg.schedule == "linear":
        schedule = linear_schedule(cfg.lr, steps, cfg.warmup_steps, end_value=end)
    elif cfg.schedule == "wsd":
        schedule = wsd_schedule(cfg.lr, steps, cfg.warmup_steps, decay_share=cfg.decay_share, end_value=end)
    else:
        schedule = constant_schedule(cfg.lr, cfg.warmup_steps)
    return lambda count: schedule(jnp.maximum(jnp.asarray(count) - cfg.schedule_from, 0) + 1)
