"""Which tiles a kernel works in: static tables by device, dtype, head width and length, one for each kind of kernel.

Static, because tiles decide in which order sums are added up: measured anew on every start, they would alter the last bits of
a run. `scripts/tune_attention.py` measures candidates on a device and prints rows. The first row of a table that fits is taken,
so that measured ones go before general ones.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Row(NamedTuple):
    """device: part of the name of the devices that a row is for. dtype: its name. "" is any.

    width, length: of a head, and of queries or keys, whichever are more, up to which the row holds; None is any. tiles: what
    the kernels of the table take. source: how the row was found.
    """

    device: str
    dtype: str
    width: int | None
    length: int | None
    tiles: dict[str, list[int]]
    source: str

    def fits(self, device: str, dtype: str, width: int, length: int) -> bool:
        """Whether the row is for such operands on such a device."""
        small = all(limit is None or size <= limit for size, limit in ((width, self.width), (length, self.length)))
        return small and self.device in device and self.dtype in ("", dtype)


TABLES = ("hopper", "tpu")


def _text(table: str) -> str:
    return importlib.resources.files(__name__).joinpath(f"{table}.json").read_text(encoding="utf-8")


@functools.cache
def rows(table: str) -> tuple[Row, ...]:
    """The rows of a table, "hopper" or "tpu", in order."""
    return tuple(Row(**row) for row in json.loads(_text(table)))


@functools.cache
def digest(table: str) -> str:
    """Eight hexadecimal digits of a SHA-256 of which tiles are for what, for records: with others the last bits differ."""
    told = [row._replace(source="") for row in rows(table)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def tiles(table: str, device: str, dtype: jax.typing.DTypeLike, width: int, length: int) -> dict[str, Any]:
    """A copy of what the first row that fits says. device: as jax names its kind. Raises ValueError where none fits."""
    name = jnp.dtype(dtype).name
    for row in rows(table):
        if row.fits(device, name, width, length):
            return {way: list(numbers) for way, numbers in row.tiles.items()}
    widest = max((row.width or 0 for row in rows(table)), default=0)
    raise ValueError(
        f"tiles of attention: expected a row for {device}, {name}, heads of {width} and a length of {length} in "
        f"pallas_kernels/tuning/{table}.json, found none; its rows go up to a width of {widest}"
    )
