"""What sets the configs of several runs apart, or that of one run from the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.config.schema import RunConfig
from jaxlm.contract import plain


def fields(config: RunConfig) -> dict[str, Any]:
    """Every field of a config by its dotted name."""
    return _flat(plain(config), "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def differences(configs: Sequence[RunConfig]) -> list[tuple[str, list[Any]]]:
    """The fields in which the configs are not all equal, each with its values in their order."""
    flat = [fields(config) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    found = [(name, [values.get(name) for values in flat]) for name in names]
    return [(name, values) for name, values in found if any(value != values[0] for value in values[1:])]


def from_defaults(config: RunConfig) -> list[tuple[str, list[Any]]]:
    """The fields in which a config is not the default, each with its value and that of the default."""
    return differences([config, RunConfig()])
