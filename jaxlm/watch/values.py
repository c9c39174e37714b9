"""What an array holds, on the host: its range, and whether any of it is not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NAN, INF = 1, 2  # bits of what an array holds


class Range(NamedTuple):
    """Values of an array. low, high: of the finite ones, None without any; nan, inf: how many are not."""

    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    nan: int
    inf: int

    def words(self) -> str:
        """`float16[4,32] in -3.1..65504.0, 2 inf`."""
        values = "none finite" if self.low is None else f"in {self.low:.6g}..{self.high:.6g}"
        bad = "".join(f", {count} {name}" for count, name in ((self.nan, "nan"), (self.inf, "inf")) if count)
        return f"{self.dtype}[{','.join(map(str, self.shape))}] {values}{bad}"


def range_of(array: Any) -> Range:
    """The range of an array; of what has no order (keys, say) and of what is empty, shape and dtype alone."""
    dtype, shape = str(array.dtype), tuple(array.shape)
    values = values_of(array)
    if values is None or not values.size:
        return Range(dtype, shape, None, None, 0, 0)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Range(dtype, shape, low, high, int(np.isnan(values).sum()), int(np.isinf(values).sum()))


def values_of(array: Any) -> np.ndarray | None:
    """The values as NumPy knows them, half precision as float32, complex ones by magnitude; None for what are no numbers."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) or array.dtype == jax.dtypes.float0:
        return None
    values = np.asarray(array)
    if values.dtype.kind == "c":
        return np.abs(values)
    return values if values.dtype.kind in "biuf" and values.dtype.itemsize > 2 else values.astype(np.float32)


def kinds_of(array: Any) -> int:
    """NAN, INF, both or 0."""
    values = values_of(array) if jnp.issubdtype(array.dtype, jnp.inexact) else None
    if values is None or np.isfinite(values).all():
        return 0
    return NAN * bool(np.isnan(values).any()) | INF * bool(np.isinf(values).any())
