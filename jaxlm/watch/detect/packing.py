"""States of detectors as JSON and back, exactly, so that a resumed run goes on watching where it stopped."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def packed(state: Any) -> Any:
    """JSON of a tree of named tuples, mappings, tuples, arrays, numbers, strings, booleans and None.

    Arrays go as their bytes, little-endian, in base64. Raises TypeError for anything else.
    """
    if isinstance(state, np.ndarray):
        little = np.ascontiguousarray(state, state.dtype.newbyteorder("<"))
        return {"dtype": state.dtype.name, "shape": list(state.shape), "base64": base64.b64encode(little.tobytes()).decode()}
    if hasattr(state, "_fields"):
        return {name: packed(getattr(state, name)) for name in state._fields}
    if isinstance(state, Mapping):
        return {str(name): packed(value) for name, value in state.items()}
    if isinstance(state, (tuple, list)):
        return [packed(value) for value in state]
    if isinstance(state, float):
        return state if math.isfinite(state) else {"float": str(state)}
    if state is None or isinstance(state, (str, int)):
        return state
    raise TypeError(f"expected a state of named tuples, arrays and plain values, found {type(state).__name__}")


def unpacked(like: Any, found: Any) -> Any:
    """The state that was packed. like: a state of the same kind, which gives the classes of named tuples.

    Raises KeyError where a field of a named tuple is missing, ValueError where one is unknown.
    """
    if hasattr(like, "_fields"):
        if unknown := set(found) - set(like._fields):
            raise ValueError(f"expected the fields of {type(like).__name__}, found {sorted(unknown)} as well")
        return type(like)(**{name: unpacked(getattr(like, name), found[name]) for name in like._fields})
    if isinstance(found, dict):
        if "base64" in found:
            dtype = np.dtype(found["dtype"]).newbyteorder("<")
            raw = np.frombuffer(base64.b64decode(found["base64"]), dtype).reshape(found["shape"])
            return raw.astype(dtype.newbyteorder("="))
        if "float" in found:
            return float(found["float"])
        inner = like if isinstance(like, Mapping) else {}
        return {name: unpacked(inner.get(name), value) for name, value in found.items()}
    if isinstance(found, list):
        return tuple(unpacked(None, value) for value in found)
    return found
